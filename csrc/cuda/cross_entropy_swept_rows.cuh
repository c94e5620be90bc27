// Cross-entropy of rows with contiguous classes that are swept, not kept: rows with a dense target mass, rows too long
// for registers, and the backward from the statistics of a forward, which reduces nothing and reads every logit once.
//
// Bytes an element: its size for the loss, and the size of a probability target; with the gradient, the gradient's and
// the probability's once more. The logits of the second sweep come from the first-level cache where a row is short, and
// else from shared memory, which keeps as many packets of a row as it has room for: 226 KB on an H100. The rest of a
// longer row comes from the second-level cache (H100: 38 MB of 132 rows of 256,000 bfloat16 classes, of its 50 MB).
#pragma once

#include <algorithm>

#include "cross_entropy_row.cuh"
#include "launch.h"
#include "launch_bounds.h"
#include "packet_window.cuh"

namespace fused_losses::cuda {
namespace {

// The first packets of a row in shared memory, from the first sweep to the second. A thread takes out what it put in,
// so that it needs no barrier.
template <class T, bool kKeeps>
class KeptPackets {
 public:
  // The launch has given the block room for `count`.
  __device__ __forceinline__ explicit KeptPackets(int64_t count) : count_(count) {
    if constexpr (kKeeps) {
      FUSED_LOSSES_DYNAMIC_SHARED(Packet<T>, shared);
      packets_ = shared;
    }
  }
  __device__ __forceinline__ bool has(int64_t packet) const { return kKeeps && packet < count_; }
  __device__ __forceinline__ Packet<T>& operator[](int64_t packet) const { return packets_[packet]; }

 private:
  Packet<T>* packets_ = nullptr;
  int64_t count_;
};

template <class T, bool kDense>
struct SweptRow {
  using A = Accumulation<T>;
  Place place;
  const T* logits;
  PacketWindow<T, int64_t> window;
  DenseMass<T, kDense> dense;

  // A row that does not exist has no classes.
  __device__ __forceinline__ SweptRow(const CrossEntropyParams& params, int64_t position, bool exists)
      : place(place_of(position, params.inner_size)),
        logits(static_cast<const T*>(params.logits) + params.logits_layout.offset(place)),
        window(logits, exists ? params.num_classes : 0),
        dense(params, place) {}

  // One thread's share: packets thread, thread + kThreads, ... The target's exponential is not summed: see Note
  // [Confident rows].
  template <int kThreads, bool kKeeps>
  __device__ __forceinline__ RowStatistics<A> statistics(int thread, const KeptPackets<T, kKeeps>& kept,
                                                         int64_t target_class) const {
    constexpr int kElements = kPacketElements<T>;
    constexpr int kInFlight = kDense ? 1 : 4;  // packets of a thread that are asked for before the first is used
    const T outside = from_accumulation<T>(-kInfinity<A>);
    const int64_t packets = window.num_packets();
    RowStatistics<A> result;
    for (int64_t first = thread; first < packets; first += kInFlight * kThreads) {
      Packet<T> x[kInFlight];
      A max = result.max;
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t packet = first + i * kThreads;
        x[i] = window.load(packet, outside, kept.has(packet) ? Reuse::Never : Reuse::Soon);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t packet = first + i * kThreads;
        if (kept.has(packet)) kept[packet] = x[i];
#pragma unroll
        for (int k = 0; k < kElements; ++k) max = max_of(max, to_accumulation(x[i].elements[k]));
      }
      result.raise(max);
      const A shift = finite_shift(max);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t c = window.first_element(first + i * kThreads);
        const int64_t target_element = target_class - c;
        if (!kDense && target_element >= 0 && target_element < kElements) {
#pragma unroll
          for (int k = 0; k < kElements; ++k) {
            if (k == target_element) x[i].elements[k] = outside;
          }
        }
#pragma unroll
        for (int k = 0; k < kElements; ++k) {
          const A shifted = to_accumulation(x[i].elements[k]) - shift;
          if (!kDense || k != target_element) result.sum += exp_of_shifted<T>(shifted);
          if constexpr (kDense) {
            if (!window.holds(c + k)) continue;
            const A mass = dense.at(c + k);
            result.mass += mass;
            result.mass_times_x += mass * shifted;
          }
        }
      }
    }
    return result;
  }

  // The gradient may take the logits' place: a thread reads what it writes, and nobody else does.
  template <int kThreads, bool kKeeps>
  __device__ __forceinline__ void write_gradient(const CrossEntropyParams& params, int thread,
                                                 const KeptPackets<T, kKeeps>& kept, const RowTarget<A>& target,
                                                 const RowGradient<T, kDense>& gradient) const {
    T* gradients = static_cast<T*>(params.gradient) + params.gradient_layout.offset(place);
    const int64_t packets = window.num_packets();
    constexpr int kInFlight = kDense ? 1 : 4;
    for (int64_t first = thread; first < packets; first += kInFlight * kThreads) {
      Packet<T> x[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t packet = first + i * kThreads;
        x[i] = kept.has(packet) ? kept[packet] : window.load(packet, T{}, Reuse::Never);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t c = window.first_element(first + i * kThreads);
        const int64_t target_element = target.target_class < 0 ? -1 : target.target_class - c;
#pragma unroll
        for (int k = 0; k < kPacketElements<T>; ++k) {
          const A mass = kDense && window.holds(c + k) ? dense.at(c + k) : A(0);
          x[i].elements[k] = gradient.at(to_accumulation(x[i].elements[k]), k == target_element, mass);
        }
        window.store(first + i * kThreads, x[i], gradients);
      }
    }
  }
};

template <int kThreads>
constexpr int kSweepBlockThreads = kThreads > 128 ? kThreads : 128;

// The first-level cache has shorter rows.
template <int kThreads>
constexpr bool kKeepsPackets = kThreads > kWarpThreads;

// See Note [Launch bounds].
template <class T, int kThreads, bool kDense, bool kBackward>
constexpr int sweep_registers() {
  if (kThreads <= 128) return sizeof(T) == 4 ? 80 : sizeof(T) == 2 && !kDense && kBackward ? 96 : 128;
  const bool is_small = kDense ? sizeof(T) <= 4 : sizeof(T) == 4 && kBackward;
  return is_small && !kBlackwell ? 64 : 128;
}

// kThreads share a row: some lanes of a warp, or a block.
template <class T, int kThreads, bool kDense>
__global__ void __launch_bounds__(kSweepBlockThreads<kThreads>,
                                  min_blocks(kSweepBlockThreads<kThreads>,
                                             sweep_registers<T, kThreads, kDense, false>()))
    cross_entropy_swept_rows_kernel(const __grid_constant__ CrossEntropyParams params, const int64_t num_kept) {
  using A = Accumulation<T>;
  if (is_scaled_already<A>(params)) return;
  const KeptPackets<T, kKeepsPackets<kThreads>> kept(num_kept);
  double block_loss = 0;
  const auto do_row = [&](int64_t position, bool exists, int thread) {
    const SweptRow<T, kDense> row(params, position, exists);
    RowTarget<A> target;
    if (exists) target = read_target<A>(params, position);
    RowStatistics<A> statistics =
        merge_group<kThreads, kDense>(row.template statistics<kThreads>(thread, kept, target.target_class));
    if (!exists) return;
    set_common_mass(params, statistics);
    const A target_logit = target.target_class >= 0 ? to_accumulation(row.logits[target.target_class]) : A(0);
    statistics.template add_target<T>(target.target_class, target_logit);
    if (thread == 0) {
      const A loss = row_loss(statistics, target, target_logit, kDense);
      block_loss += static_cast<double>(loss);
      write_row(params, position, statistics, loss);
    }
    if (params.mode == CrossEntropyMode::Loss) return;
    const RowGradient<T, kDense> gradient(statistics, target, row_scale<A>(params, position));
    row.template write_gradient<kThreads>(params, thread, kept, target, gradient);
  };
  for_each_row<kThreads, kSweepBlockThreads<kThreads>>(params.num_positions, do_row);
  write_block_sum<kSweepBlockThreads<kThreads>>(block_loss, params.block_losses);
}

template <class T, int kThreads, bool kDense>
__global__ void __launch_bounds__(kSweepBlockThreads<kThreads>,
                                  min_blocks(kSweepBlockThreads<kThreads>,
                                             sweep_registers<T, kThreads, kDense, true>()))
    cross_entropy_rows_backward_kernel(const __grid_constant__ CrossEntropyParams params) {
  using A = Accumulation<T>;
  const auto do_row = [&](int64_t position, bool exists, int thread) {
    if (!exists) return;
    const SweptRow<T, kDense> row(params, position, true);
    const RowTarget<A> target = read_target<A>(params, position);
    const RowGradient<T, kDense> gradient(read_row<A>(params, position), target, row_scale<A>(params, position));
    row.template write_gradient<kThreads>(params, thread, KeptPackets<T, false>(0), target, gradient);
  };
  for_each_row<kThreads, kSweepBlockThreads<kThreads>>(params.num_positions, do_row);
}

template <class T, int kThreads, bool kDense>
int64_t launch_swept_rows(const CrossEntropyParams& params, Stream stream) {
  constexpr int kBlockThreads = kSweepBlockThreads<kThreads>;
  const int64_t blocks = blocks_for(params.num_positions, kBlockThreads / kThreads);
  if (params.mode == CrossEntropyMode::Backward) {
    launch(cross_entropy_rows_backward_kernel<T, kThreads, kDense>, {blocks, kBlockThreads}, stream, params);
    return blocks;
  }
  const auto kernel = cross_entropy_swept_rows_kernel<T, kThreads, kDense>;
  int64_t num_kept = 0;
  if (kKeepsPackets<kThreads> && params.mode == CrossEntropyMode::LossAndGradient) {
    num_kept = std::min(max_packets<T>(params.num_classes), max_dynamic_shared_bytes(kernel) / kPacketBytes);
  }
  launch(kernel, {blocks, kBlockThreads, num_kept * kPacketBytes}, stream, params, num_kept);
  return blocks;
}

template <class T, bool kDense>
int64_t cross_entropy_swept_rows(const CrossEntropyParams& params, Stream stream) {
  const int64_t packets = max_packets<T>(params.num_classes);
  if (packets <= 8) return launch_swept_rows<T, 4, kDense>(params, stream);
  if (packets <= 256) return launch_swept_rows<T, 32, kDense>(params, stream);
  return launch_swept_rows<T, 512, kDense>(params, stream);
}

}  // namespace
}  // namespace fused_losses::cuda
