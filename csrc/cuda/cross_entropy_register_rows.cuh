// Cross-entropy of rows with contiguous classes and index targets, smoothed without class weights or not, that fit into
// the registers of one group of threads: every logit is read once, whether or not there is a gradient.
//
// Bytes an element: its size for the loss, twice that with the gradient. A group is 2 to 32 lanes of a warp or a block
// of its own, with up to 8 packets of 16 bytes a thread in flight: see docs/cuda.md for the geometry.
#pragma once

#include "cross_entropy_row.cuh"
#include "launch.h"
#include "launch_bounds.h"
#include "packet_window.cuh"
#include "reduce.h"

namespace fused_losses::cuda {
namespace {

template <int kGroup, int kPacketsPerThread>
struct RowGeometry {
  static constexpr int kThreads = kGroup;  // that share a row
  static constexpr int kPackets = kPacketsPerThread;
  // Of these as many have a packet in every row: see cross_entropy_register_rows for what rows there are.
  static constexpr int kFilled = kPackets == 8 ? 4 : kPackets / 4;
  static constexpr int kBlockThreads = kThreads > kWarpThreads ? kThreads : 128;
  static constexpr int kRowsPerBlock = kBlockThreads / kThreads;
  static_assert((kThreads & (kThreads - 1)) == 0 && kThreads <= 1024);
  static_assert(kThreads <= kWarpThreads || kRowsPerBlock == 1, "a block's barrier must belong to one row");
};

// One thread's share of a row: packets thread, thread + kThreads, ... and edges likewise. -inf where there is none.
template <class T, class Geometry>
struct RowShare {
  using A = Accumulation<T>;
  using Window = PacketWindow<T, int>;
  static constexpr int kThreads = Geometry::kThreads;
  static constexpr int kPackets = Geometry::kPackets;
  static constexpr int kElements = kPacketElements<T>;
  static constexpr int kEdges = (Window::kMaxEdges + kThreads - 1) / kThreads;

  Window window;
  int thread;
  Packet<T> packets[kPackets];
  T edges[kEdges];

  // All of it is asked for before any of it is looked at.
  __device__ __forceinline__ RowShare(const T* row, int num_classes, int thread_of_row)
      : window(row, num_classes), thread(thread_of_row) {
    const T outside = from_accumulation<T>(-kInfinity<A>);
    const T* const first = window.address(row, thread);
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      packets[i] = has(i) ? load_packet(first + i * kThreads * kElements, Reuse::Never) : Packet<T>::lowest();
    }
#pragma unroll
    for (int i = 0; i < kEdges; ++i) edges[i] = window.load_edge(number(i), outside);
  }

  __device__ __forceinline__ int number(int i) const { return thread + i * kThreads; }
  __device__ __forceinline__ bool has(int i) const { return i < Geometry::kFilled || number(i) < window.num_packets(); }
  __device__ __forceinline__ bool has_edge(int i) const { return number(i) < window.num_edges(); }

  __device__ __forceinline__ A max() const {
    Packet<T> largest = packets[0];
#pragma unroll
    for (int i = 1; i < kPackets; ++i) largest = max_of_packets(largest, packets[i]);
    A result = max_of_packet(largest);
#pragma unroll
    for (int i = 0; i < kEdges; ++i) result = max_of(result, to_accumulation(edges[i]));
    return result;
  }

  // What was made of the elements so far is made again where it is asked for: kept, it takes more registers than there
  // are. That it would be kept only threatens where no branch stands before it.
  __device__ __forceinline__ void forget() {
#pragma unroll
    for (int i = 0; i < Geometry::kFilled; ++i) {
#pragma unroll
      for (uint32_t& word : packets[i].words) word = opaque(word);
    }
  }

  // Of every element that the thread has: body(element).
  template <class Body>
  __device__ __forceinline__ A sum_of(const Body& body) const {
    A sum = 0;
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      if (!has(i)) continue;
      A part = 0;
#pragma unroll
      for (int k = 0; k < kElements; ++k) part += body(packets[i].at(k));
      sum += part;
    }
#pragma unroll
    for (int i = 0; i < kEdges; ++i) {
      if (has_edge(i)) sum += body(to_accumulation(edges[i]));
    }
    return sum;
  }

  // Takes the class out, where it is this thread's: its exponential is then 0. Whether it is.
  __device__ __forceinline__ bool take_out(int c) {
    const T outside = from_accumulation<T>(-kInfinity<A>);
    bool is_ours = false;
    const typename Window::Spot spot = window.find(c);
    if (spot.packet >= 0) {
      const int i = spot.packet - thread;
      if (i % kThreads != 0 || i < 0) return false;
#pragma unroll
      for (int slot = 0; slot < kPackets; ++slot) {
        if (i != slot * kThreads) continue;
        packets[slot].replace(spot.element, -kInfinity<A>);
      }
      return true;
    }
#pragma unroll
    for (int i = 0; i < kEdges; ++i) {
      if (!has_edge(i) || window.edge_element(number(i)) != c) continue;
      edges[i] = outside;
      is_ours = true;
    }
    return is_ours;
  }

  // row[c] = body(element c).
  template <class Body>
  __device__ __forceinline__ void store(T* row, const Body& body) const {
    const bool packed = window.is_packed(row);
    T* const first = window.address(row, thread);
#pragma unroll
    for (int i = 0; i < kPackets; ++i) {
      if (!has(i)) continue;
      A values[kElements];
#pragma unroll
      for (int k = 0; k < kElements; ++k) values[k] = body(packets[i].at(k));
      Window::store_at(first + i * kThreads * kElements, Packet<T>::of(values), packed);
    }
#pragma unroll
    for (int i = 0; i < kEdges; ++i) {
      if (has_edge(i)) row[window.edge_element(number(i))] = from_accumulation<T>(body(to_accumulation(edges[i])));
    }
  }
};

// See Note [Launch bounds].
template <class T, class Geometry>
constexpr int register_row_registers() {
  if (sizeof(T) == 8) return 128;
  if (Geometry::kPackets == 8) return Geometry::kThreads <= kWarpThreads ? 96 : 80;
  return 80;
}

template <class T, class Geometry>
__global__ void __launch_bounds__(Geometry::kBlockThreads,
                                  min_blocks(Geometry::kBlockThreads, register_row_registers<T, Geometry>()))
    cross_entropy_register_rows_kernel(const __grid_constant__ CrossEntropyParams params,
                                       const __grid_constant__ UniformMass<Accumulation<T>> uniform) {
  using A = Accumulation<T>;
  if (is_prepared<A>(params)) return;
  const A scale = params.mode != CrossEntropyMode::Loss ? forward_scale<A>(params) : A(0);
  double block_loss = 0;

  const auto do_row = [&](int64_t position, bool exists, int thread) {
    // Past the last row the last one is done again, by lanes that the reductions need.
    const Place place = place_of(exists ? position : params.num_positions - 1, params.inner_size);
    const T* logits = static_cast<const T*>(params.logits) + params.logits_layout.offset(place);
    RowShare<T, Geometry> row(logits, static_cast<int>(params.num_classes), thread);
    RowTarget<A> target;
    A target_logit = 0;
    if (exists) target = read_target<A>(params, position);
    if (target.target_class >= 0) target_logit = to_accumulation(logits[target.target_class]);

    RowStatistics<A> statistics;
    statistics.max = max_of_group<Geometry::kThreads>(row.max());
    const A shift = finite_shift(statistics.max);
    A sums[2] = {};
    if (uniform.exists) sums[1] = row.sum_of([&](A x) { return x - shift; });
    // The target's exponential is not summed, and its gradient is not made of it: see Note [Confident rows].
    const bool has_target = target.target_class >= 0 && row.take_out(static_cast<int>(target.target_class));
    const RowExponential<T> exponential(shift);
    sums[0] = row.sum_of([&](A x) { return exponential(x); });
    sum_over_group<Geometry::kThreads>(sums);
    if (!exists) return;
    statistics.sum = sums[0] * exponential.correction(shift);
    statistics.mass_times_x = sums[1] * uniform.spread;
    statistics.template add_target<T>(target.target_class, target_logit);
    set_common_mass(params, statistics);

    if (thread == 0) block_loss += write_row(params, position, statistics, target, target_logit, uniform.exists);
    if (params.mode == CrossEntropyMode::Loss) return;
    row.forget();
    const RowGradient<T> gradient(statistics, target, scale, uniform.exists);
    const A scaled_mass = uniform.spread * gradient.scale;
    T* gradients = static_cast<T*>(params.gradient) + params.gradient_layout.offset(place);
    row.store(gradients, [&](A x) { return gradient.at(x, scaled_mass); });
    if (has_target) {
      gradients[target.target_class] = from_accumulation<T>(gradient.at_target(target_logit, uniform.spread));
    }
  };
  for_each_row<Geometry::kThreads, Geometry::kBlockThreads>(params.num_positions, do_row);
  write_block_sum<Geometry::kBlockThreads>(block_loss, params.block_losses);
}

template <class T, class Geometry>
int64_t launch_register_rows(const CrossEntropyParams& params, Stream stream) {
  const int64_t blocks = blocks_for(params.num_positions, Geometry::kRowsPerBlock);
  launch(cross_entropy_register_rows_kernel<T, Geometry>, {blocks, Geometry::kBlockThreads}, stream, params,
         UniformMass<Accumulation<T>>(params));
  return blocks;
}

// The longest row that is kept in registers.
template <class T>
constexpr bool fits_registers(int64_t num_classes) {
  return max_packets<T>(num_classes) <= 256 * 8;
}

// At least half of a geometry's packets lie in the row, wherever it begins: see kFilled. A thread has as many as its
// registers hold, which spreads what a row costs over more of its elements, and blocks are small: while one reduces,
// others read.
template <class T>
int64_t cross_entropy_register_rows(const CrossEntropyParams& params, Stream stream) {
  const int64_t packets = max_packets<T>(params.num_classes);
  if (packets <= 2) return launch_register_rows<T, RowGeometry<2, 1>>(params, stream);
  if (packets <= 8) return launch_register_rows<T, RowGeometry<2, 4>>(params, stream);
  if (packets <= 16) return launch_register_rows<T, RowGeometry<2, 8>>(params, stream);
  if (packets <= 32) return launch_register_rows<T, RowGeometry<4, 8>>(params, stream);
  if (packets <= 64) return launch_register_rows<T, RowGeometry<8, 8>>(params, stream);
  if (packets <= 128) return launch_register_rows<T, RowGeometry<16, 8>>(params, stream);
  if (packets <= 256) return launch_register_rows<T, RowGeometry<32, 8>>(params, stream);
  if (packets <= 512) return launch_register_rows<T, RowGeometry<64, 8>>(params, stream);
  if (packets <= 1024) return launch_register_rows<T, RowGeometry<128, 8>>(params, stream);
  return launch_register_rows<T, RowGeometry<256, 8>>(params, stream);
}

}  // namespace
}  // namespace fused_losses::cuda
