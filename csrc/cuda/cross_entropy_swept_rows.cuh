// Cross-entropy of rows with contiguous classes that are swept, not kept: rows with a target mass that differs by
// class or with terms, rows too long for registers, and the backward from the statistics of a forward, which reduces
// nothing and reads every logit once.
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
  __device__ __forceinline__ explicit KeptPackets(int count) : count_(count) {
    if constexpr (kKeeps) {
      FUSED_LOSSES_DYNAMIC_SHARED(Packet<T>, shared);
      packets_ = shared;
    }
  }
  // `packet` is one of the row.
  __device__ __forceinline__ bool has(int packet) const { return kKeeps && packet < count_; }
  __device__ __forceinline__ Packet<T>& operator[](int packet) const { return packets_[packet]; }

 private:
  Packet<T>* packets_ = nullptr;
  int count_;
};

// kDense: whether there is a target mass that differs by class.
template <class T, bool kDense, class Terms>
class SweptRow {
 public:
  using A = Accumulation<T>;

  // A row that does not exist has no classes.
  __device__ __forceinline__ SweptRow(const CrossEntropyParams& params, const UniformMass<A>& uniform,
                                      const Terms& terms, int64_t position, bool exists)
      : place_(place_of(position, params.inner_size)),
        logits_(static_cast<const T*>(params.logits) + params.logits_layout.offset(place_)),
        window_(logits_, exists ? params.num_classes : 0),
        num_packets_(static_cast<int>(window_.num_packets())),
        uniform_(uniform),
        terms_(terms),
        params_(params) {}

  __device__ __forceinline__ A unit(int64_t c) const { return terms_.unit(to_accumulation(logits_[c])); }

  // One thread's share: packets thread, thread + kThreads, ... and edges likewise. The target's exponential is not
  // summed: see Note [Confident rows].
  template <int kThreads, bool kKeeps>
  __device__ __forceinline__ RowStatistics<A> statistics(int thread, const KeptPackets<T, kKeeps>& kept,
                                                         int64_t target_class) const {
    RowStatistics<A> result;
    UnitExponential<T, Terms> exponential(A(0), terms_);
    const typename Window::Spot target = window_.find(target_class);
    const int first = for_each_round<kThreads>(
        thread, [&](int packet) { add_packets<kThreads, true>(result, exponential, packet, kept, target); });
    if (first < num_packets_) add_packets<kThreads, false>(result, exponential, first, kept, target);
    result.sum *= exponential.correction(finite_shift(result.max));
    for (int edge = thread; edge < window_.num_edges(); edge += kThreads) {
      const int64_t c = window_.edge_element(edge);
      const A x = unit(c);
      result.raise(max_of(result.max, x), terms_);
      const A shifted = x - finite_shift(result.max);
      if (c != target_class) result.sum += exp_of_shifted<T>(terms_.to_x(shifted));
      if constexpr (kDense) {
        add_mass(result, dense().at(c), shifted);
      } else if (uniform_.exists) {
        add_mass(result, A(1), shifted);
      }
    }
    return result;
  }

  // With the sum of the target too, and the mass in units of q.
  __device__ __forceinline__ void finish(RowStatistics<A>& statistics, int64_t target_class, A target_unit) const {
    statistics.template add_target<T>(target_class, target_unit, terms_);
    if constexpr (!kDense) statistics.mass_times_x *= uniform_.spread;
    statistics.mass_times_x = terms_.to_x(statistics.mass_times_x);
    set_common_mass(params_, statistics);
  }

  // Whether the class is among the packets of this thread.
  template <int kThreads>
  __device__ __forceinline__ bool has_in_packet(int thread, int64_t target_class) const {
    const int packet = window_.find(target_class).packet;
    return packet >= 0 && packet % kThreads == thread;
  }

  // The gradient may take the logits' place: a thread reads what it writes, and nobody else does. `target_unit` counts
  // where has_in_packet.
  template <int kThreads, bool kKeeps>
  __device__ __forceinline__ void write_gradient(int thread, const KeptPackets<T, kKeeps>& kept, int64_t target_class,
                                                 A target_unit, const RowGradient<T, Terms>& gradient) const {
    T* gradients = static_cast<T*>(params_.gradient) + params_.gradient_layout.offset(place_);
    const A uniform = uniform_.spread * gradient.scale;
    const bool packed = window_.is_packed(gradients);
    const int first = for_each_round<kThreads>(
        thread, [&](int packet) { write_packets<kThreads, true>(gradients, packed, packet, kept, uniform, gradient); });
    if (first < num_packets_) write_packets<kThreads, false>(gradients, packed, first, kept, uniform, gradient);
    if (has_in_packet<kThreads>(thread, target_class)) {
      const A value = gradient.at_target(target_unit, mass_at(target_class));
      gradients[target_class] = from_accumulation<T>(terms_.of_logit(value, target_unit));
    }
    for (int edge = thread; edge < window_.num_edges(); edge += kThreads) {
      const int64_t c = window_.edge_element(edge);
      const A x = unit(c);
      const A mass = mass_at(c);
      const A value = c == target_class ? gradient.at_target(x, mass) : gradient.at(x, mass * gradient.scale);
      gradients[c] = from_accumulation<T>(terms_.of_logit(value, x));
    }
  }

 private:
  using Window = PacketWindow<T, int64_t>;
  static constexpr int kElements = kPacketElements<T>;
  // Packets of a thread that are asked for before the first is used.
  static constexpr int kInFlight = kDense ? (sizeof(T) == 4 ? 2 : 1) : Terms::kAny ? 2 : 3;

  __device__ __forceinline__ DenseMass<T> dense() const { return DenseMass<T>(params_, place_); }
  __device__ __forceinline__ A mass_at(int64_t c) const {
    if constexpr (kDense) return dense().at(c);
    return uniform_.spread;
  }

  static __device__ __forceinline__ void add_mass(RowStatistics<A>& result, A mass, A shifted) {
    result.mass += mass;
    result.mass_times_x += mass * shifted;
  }

  // Calls body(packet) for every kInFlight packets of a thread, which all exist. The first of those that are left.
  template <int kThreads, class Body>
  __device__ __forceinline__ int for_each_round(int thread, const Body& body) const {
    int packet = thread;
    for (; packet + (kInFlight - 1) * kThreads < num_packets_; packet += kInFlight * kThreads) body(packet);
    return packet;
  }

  // Packets first, first + kThreads, ... kAll: every one of them exists. Between two calls the sum lacks the
  // exponentials' correction.
  template <int kThreads, bool kAll, bool kKeeps>
  __device__ __forceinline__ void add_packets(RowStatistics<A>& result, UnitExponential<T, Terms>& exponential,
                                              int first, const KeptPackets<T, kKeeps>& kept,
                                              const typename Window::Spot& target) const {
    const auto exists = [&](int i) { return kAll || first + i * kThreads < num_packets_; };
    const T* const from = window_.address(logits_, first);
    Packet<T> x[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int packet = first + i * kThreads;
      if (exists(i)) {
        x[i] = load_packet(from + i * kThreads * kElements, kept.has(packet) ? Reuse::Never : Reuse::Soon);
      } else {
        x[i] = Packet<T>::lowest();
      }
    }
    A masses[kInFlight][kElements];  // where they differ by class
#pragma unroll
    for (int i = 0; kDense && i < kInFlight; ++i) {
      if (exists(i)) dense().packet(window_.first_element(first + i * kThreads), masses[i]);
    }
    if (kept.has(first)) {
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int packet = first + i * kThreads;
        if (exists(i) && kept.has(packet)) kept[packet] = x[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (exists(i)) x[i] = terms_.keys(x[i]);
    }
    Packet<T> largest = x[0];
#pragma unroll
    for (int i = 1; i < kInFlight; ++i) largest = max_of_packets(largest, x[i]);
    const A max = max_of(result.max, terms_.unit_of_key(max_of_packet(largest)));
    const A shift = finite_shift(max);
    if (max != result.max) {
      result.sum *= exponential.correction(finite_shift(result.max));
      exponential = UnitExponential<T, Terms>(shift, terms_);
      result.raise(max, terms_);
      result.sum /= exponential.correction(shift);
    }
    if (kDense || uniform_.exists) {
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        if (!exists(i)) continue;
#pragma unroll
        for (int k = 0; k < kElements; ++k) {
          add_mass(result, kDense ? masses[i][k] : A(1), terms_.unit_of_key(x[i].at(k)) - shift);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (!exists(i)) continue;
      const bool has_target = first + i * kThreads == target.packet;
      if (!Terms::kSoftcapped && has_target) x[i].replace(target.element, -kInfinity<A>);
      A part = 0;
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const A value = exponential(terms_.unit_of_key(x[i].at(k)));
        // A softcap makes -inf a number.
        part += Terms::kSoftcapped && has_target && k == target.element ? A(0) : value;
      }
      result.sum += part;
    }
  }

  template <int kThreads, bool kAll, bool kKeeps>
  __device__ __forceinline__ void write_packets(T* gradients, bool packed, int first,
                                                const KeptPackets<T, kKeeps>& kept, A uniform,
                                                const RowGradient<T, Terms>& gradient) const {
    const auto exists = [&](int i) { return kAll || first + i * kThreads < num_packets_; };
    const T* const from = window_.address(logits_, first);
    T* const to = window_.address(gradients, first);
    Packet<T> x[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int packet = first + i * kThreads;
      if (!exists(i)) continue;
      x[i] = kept.has(packet) ? kept[packet] : load_packet(from + i * kThreads * kElements, Reuse::Never);
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (!exists(i)) continue;
      A masses[kElements] = {};
      if constexpr (kDense) dense().packet(window_.first_element(first + i * kThreads), masses);
      A values[kElements];
      x[i] = terms_.keys(x[i]);
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const A unit = terms_.unit_of_key(x[i].at(k));
        values[k] = terms_.of_logit(gradient.at(unit, kDense ? masses[k] * gradient.scale : uniform), unit);
      }
      Window::store_at(to + i * kThreads * kElements, Packet<T>::of(values), packed);
    }
  }

  Place place_;
  const T* logits_;
  Window window_;
  int num_packets_;  // below 2^31 where there are fewer than 2^32 classes
  const UniformMass<A>& uniform_;
  const Terms& terms_;
  const CrossEntropyParams& params_;
};

template <int kThreads>
constexpr int kSweepBlockThreads = kThreads > 128 ? kThreads : 128;

// The first-level cache has shorter rows.
template <int kThreads>
constexpr bool kKeepsPackets = kThreads > kWarpThreads;

// See Note [Launch bounds]. With 64 registers 1024 threads are resident, which together ask for 48 KB at a time.
template <class T, int kThreads, bool kDense, class Terms>
constexpr int sweep_registers() {
  if (Terms::kAny) return 128;
  if (kThreads >= 256 && !kDense && sizeof(T) < 8) return 64;
  return sizeof(T) == 8 || kBlackwell ? 128 : kDense && sizeof(T) == 2 ? 96 : 80;
}

// kThreads share a row: some lanes of a warp, or a block.
template <class T, int kThreads, bool kDense, class Terms>
__global__ void __launch_bounds__(kSweepBlockThreads<kThreads>,
                                  min_blocks(kSweepBlockThreads<kThreads>,
                                             sweep_registers<T, kThreads, kDense, Terms>()))
    cross_entropy_swept_rows_kernel(const __grid_constant__ CrossEntropyParams params,
                                    const __grid_constant__ UniformMass<Accumulation<T>> uniform, const int num_kept,
                                    const __grid_constant__ Terms terms) {
  using A = Accumulation<T>;
  if (is_prepared<A>(params)) return;
  const KeptPackets<T, kKeepsPackets<kThreads>> kept(num_kept);
  const A scale = params.mode != CrossEntropyMode::Loss ? forward_scale<A>(params) : A(0);
  double block_loss = 0;
  const auto do_row = [&](int64_t position, bool exists, int thread) {
    const SweptRow<T, kDense, Terms> row(params, uniform, terms, position, exists);
    const bool with_mass = kDense || uniform.exists;
    RowTarget<A> target;
    if (exists) target = read_target<A>(params, position);
    const A target_unit = target.target_class >= 0 ? row.unit(target.target_class) : A(0);
    RowStatistics<A> statistics = row.template statistics<kThreads>(thread, kept, target.target_class);
    statistics.raise(max_of_group<kThreads>(statistics.max), terms);
    A sums[3] = {statistics.sum, statistics.mass, statistics.mass_times_x};
    sum_over_group<kThreads>(sums);
    if (!exists) return;
    statistics.sum = sums[0];
    statistics.mass = sums[1];
    statistics.mass_times_x = sums[2];
    row.finish(statistics, target.target_class, target_unit);
    if (thread == 0) block_loss += write_row(params, position, statistics, target, target_unit, with_mass, terms);
    if (params.mode == CrossEntropyMode::Loss) return;
    const RowGradient<T, Terms> gradient(statistics, target, target_unit, scale, with_mass, terms);
    row.template write_gradient<kThreads>(thread, kept, target.target_class, target_unit, gradient);
  };
  for_each_row<kThreads, kSweepBlockThreads<kThreads>>(params.num_positions, do_row);
  write_block_sum<kSweepBlockThreads<kThreads>>(block_loss, params.block_losses);
}

template <class T, int kThreads, bool kDense, class Terms>
__global__ void __launch_bounds__(kSweepBlockThreads<kThreads>,
                                  min_blocks(kSweepBlockThreads<kThreads>,
                                             sweep_registers<T, kThreads, kDense, Terms>()))
    cross_entropy_rows_backward_kernel(const __grid_constant__ CrossEntropyParams params,
                                       const __grid_constant__ UniformMass<Accumulation<T>> uniform,
                                       const __grid_constant__ Terms terms) {
  using A = Accumulation<T>;
  const auto do_row = [&](int64_t position, bool exists, int thread) {
    if constexpr (!Terms::kAny) {
      if (!exists) return;
    }
    const SweptRow<T, kDense, Terms> row(params, uniform, terms, position, exists);
    RowTarget<A> target;
    RowStatistics<A> statistics;
    A scale = 0;
    if (exists) {
      target = read_target<A>(params, position);
      statistics = read_row<A>(params, position);
      scale = backward_scale<A>(params, position);
    }
    // With terms every thread needs the target's, which one of them may soon write over.
    const bool reads_target =
        Terms::kAny ? target.target_class >= 0 : row.template has_in_packet<kThreads>(thread, target.target_class);
    const A target_unit = reads_target ? row.unit(target.target_class) : A(0);
    if constexpr (Terms::kAny) wait_for_group<kThreads>();
    if (!exists) return;
    const RowGradient<T, Terms> gradient(statistics, target, target_unit, scale, kDense || uniform.exists, terms);
    row.template write_gradient<kThreads>(thread, KeptPackets<T, false>(0), target.target_class, target_unit, gradient);
  };
  for_each_row<kThreads, kSweepBlockThreads<kThreads>>(params.num_positions, do_row);
}

template <class T, int kThreads, bool kDense, class Terms>
int64_t launch_rows_backward(const CrossEntropyParams& params, Stream stream, const Terms& terms) {
  constexpr int kBlockThreads = kSweepBlockThreads<kThreads>;
  const int64_t blocks = blocks_for(params.num_positions, kBlockThreads / kThreads);
  launch(cross_entropy_rows_backward_kernel<T, kThreads, kDense, Terms>, {blocks, kBlockThreads}, stream, params,
         UniformMass<Accumulation<T>>(params), terms);
  return blocks;
}

template <class T, int kThreads, bool kDense, class Terms>
int64_t room_for_packets() {
  return max_dynamic_shared_bytes(cross_entropy_swept_rows_kernel<T, kThreads, kDense, Terms>) / kPacketBytes;
}

// With a gradient kSharing blocks of a multiprocessor share its room for packets.
template <class T, int kThreads, bool kDense, int kSharing, class Terms>
int64_t launch_swept_rows(const CrossEntropyParams& params, Stream stream, const Terms& terms) {
  constexpr int kBlockThreads = kSweepBlockThreads<kThreads>;
  const int64_t blocks = blocks_for(params.num_positions, kBlockThreads / kThreads);
  int64_t num_kept = 0;  // of a row that is read once
  if (kKeepsPackets<kThreads> && params.mode == CrossEntropyMode::LossAndGradient) {
    num_kept = std::min(max_packets<T>(params.num_classes), room_for_packets<T, kThreads, kDense, Terms>() / kSharing);
  }
  launch(cross_entropy_swept_rows_kernel<T, kThreads, kDense, Terms>, {blocks, kBlockThreads, num_kept * kPacketBytes},
         stream, params, UniformMass<Accumulation<T>>(params), static_cast<int>(num_kept), terms);
  return blocks;
}

template <class T, bool kDense, class Terms>
int64_t cross_entropy_rows_backward(const CrossEntropyParams& params, Stream stream, const Terms& terms) {
  const int64_t packets = max_packets<T>(params.num_classes);
  if (packets <= 8) return launch_rows_backward<T, 4, kDense>(params, stream, terms);
  if (packets <= 512) return launch_rows_backward<T, 32, kDense>(params, stream, terms);
  return launch_rows_backward<T, 256, kDense>(params, stream, terms);
}

// Rows that no other kernel takes: with a target mass that differs by class, or with terms.
template <class T, bool kDense, class Terms>
int64_t cross_entropy_swept_rows(const CrossEntropyParams& params, Stream stream, const Terms& terms) {
  const int64_t packets = max_packets<T>(params.num_classes);
  if (packets <= 8) return launch_swept_rows<T, 4, kDense, 1>(params, stream, terms);
  if (packets <= 256) return launch_swept_rows<T, 32, kDense, 1>(params, stream, terms);
  constexpr int kBlocks = min_blocks(256, sweep_registers<T, 256, kDense, Terms>());
  return launch_swept_rows<T, 256, kDense, kBlocks>(params, stream, terms);
}

// As many blocks on a multiprocessor as it has room for rows: while one reduces, others read. Room for less than the
// row costs more than that gains (measured: docs/cuda.md). The length of the row alone decides, whatever is asked for,
// so that the statistics have the same bits with a gradient and without.
template <class T>
int64_t cross_entropy_long_rows(const CrossEntropyParams& params, Stream stream) {
  const int64_t packets = max_packets<T>(params.num_classes);
  const int64_t room = room_for_packets<T, 256, false, NoTerms>();
  if (3 * packets <= room) return launch_swept_rows<T, 256, false, 3>(params, stream, NoTerms{});
  if constexpr (sizeof(T) == 8) {  // it lacks the registers for more
    return launch_swept_rows<T, 512, false, 1>(params, stream, NoTerms{});
  } else {
    if (2 * packets <= room) return launch_swept_rows<T, 512, false, 2>(params, stream, NoTerms{});
    return launch_swept_rows<T, 1024, false, 1>(params, stream, NoTerms{});
  }
}

}  // namespace
}  // namespace fused_losses::cuda
