// Cross-entropy of rows with contiguous classes and index targets that fit into the registers of one group of threads:
// every logit is read once, whether or not there is a gradient.
//
// Bytes an element: its size for the loss, twice that with the gradient. A group is 2 to 32 lanes of a warp or a block
// of its own, with 1 to 8 packets of 16 bytes a thread in flight: see docs/cuda.md for the geometry.
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
  static constexpr int kBlockThreads = kThreads > 128 ? kThreads : 128;
  static constexpr int kRowsPerBlock = kBlockThreads / kThreads;
  static constexpr bool kWithinWarp = kThreads <= kWarpThreads;
  static constexpr int kLanes = kWithinWarp ? kThreads : kWarpThreads;
  static_assert((kThreads & (kThreads - 1)) == 0 && kThreads <= 1024);
  static_assert(kWithinWarp || kRowsPerBlock == 1, "a block's barrier must belong to one row");
};

// See Note [Launch bounds].
template <class T, class Geometry>
constexpr int register_row_registers() {
  if (Geometry::kPackets == 1) return sizeof(T) == 8 ? 80 : 64;
  if (Geometry::kPackets == 4 && sizeof(T) == 4) return Geometry::kThreads == 32 ? 80 : 64;
  if (Geometry::kThreads == 512 || (Geometry::kThreads == 32 && kBlackwell)) return 128;
  return sizeof(T) == 8 ? 96 : 80;
}

template <class T, class Geometry>
__global__ void __launch_bounds__(Geometry::kBlockThreads,
                                  min_blocks(Geometry::kBlockThreads, register_row_registers<T, Geometry>()))
    cross_entropy_register_rows_kernel(const __grid_constant__ CrossEntropyParams params) {
  using A = Accumulation<T>;
  constexpr int kElements = kPacketElements<T>;
  if (is_scaled_already<A>(params)) return;
  const T outside = from_accumulation<T>(-kInfinity<A>);
  double block_loss = 0;

  const auto do_row = [&](int64_t position, bool exists, int thread) {
    const Place place = place_of(position, params.inner_size);
    const T* logits = static_cast<const T*>(params.logits) + params.logits_layout.offset(place);
    const PacketWindow<T, int> window(logits, exists ? static_cast<int>(params.num_classes) : 0);
    // All packets are asked for before any is looked at.
    Packet<T> row[Geometry::kPackets];
#pragma unroll
    for (int i = 0; i < Geometry::kPackets; ++i) {
      row[i] = window.load_whole(thread + i * Geometry::kThreads, outside, Reuse::Never);
    }
    A x[Geometry::kPackets][kElements];
#pragma unroll
    for (int i = 0; i < Geometry::kPackets; ++i) {
      window.load_partial(thread + i * Geometry::kThreads, row[i]);
#pragma unroll
      for (int k = 0; k < kElements; ++k) x[i][k] = to_accumulation(row[i].elements[k]);
    }
    RowTarget<A> target;
    A target_logit = 0;
    if (exists) target = read_target<A>(params, position);
    if (target.target_class >= 0) target_logit = to_accumulation(logits[target.target_class]);
    RowStatistics<A> statistics;
#pragma unroll
    for (int i = 0; i < Geometry::kPackets; ++i) {
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        statistics.max = max_of(statistics.max, x[i][k]);
      }
    }
    statistics.max = max_of_lanes<Geometry::kLanes>(statistics.max);
    const A shift = finite_shift(statistics.max);
    // The target's exponential is not summed, and its gradient is not made of it: see Note [Confident rows].
    const int target_class = static_cast<int>(target.target_class);
#pragma unroll
    for (int i = 0; i < Geometry::kPackets; ++i) {
      const int target_element = target_class - window.first_element(thread + i * Geometry::kThreads);
      if (target_element < 0 || target_element >= kElements) continue;
#pragma unroll
      for (int k = 0; k < kElements; ++k) x[i][k] = k == target_element ? -kInfinity<A> : x[i][k];
    }
#pragma unroll
    for (int i = 0; i < Geometry::kPackets; ++i) {
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        statistics.sum += exp_of_shifted<T>(x[i][k] - shift);
      }
    }
    statistics = merge_group<Geometry::kThreads, false>(statistics);
    if (!exists) return;
    statistics.template add_target<T>(target.target_class, target_logit);

    if (thread == 0) {
      const A loss = row_loss(statistics, target, target_logit, false);
      block_loss += static_cast<double>(loss);
      write_row(params, position, statistics, loss);
    }
    if (params.mode == CrossEntropyMode::Loss) return;
    const RowGradient<T, false> gradient(statistics, target, row_scale<A>(params, position));
    T* gradients = static_cast<T*>(params.gradient) + params.gradient_layout.offset(place);
#pragma unroll
    for (int i = 0; i < Geometry::kPackets; ++i) {
      const int packet = thread + i * Geometry::kThreads;
      const int c = window.first_element(packet);
      Packet<T> values;
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        // Without a point mass the target class is -1: no element of the row.
        values.elements[k] = gradient.at(x[i][k], k == target_class - c, A(0));
      }
      window.store(packet, values, gradients);
    }
  };
  for_each_row<Geometry::kThreads, Geometry::kBlockThreads>(params.num_positions, do_row);
  write_block_sum<Geometry::kBlockThreads>(block_loss, params.block_losses);
}

template <class T, class Geometry>
int64_t launch_register_rows(const CrossEntropyParams& params, Stream stream) {
  const int64_t blocks = blocks_for(params.num_positions, Geometry::kRowsPerBlock);
  launch(cross_entropy_register_rows_kernel<T, Geometry>, {blocks, Geometry::kBlockThreads}, stream, params);
  return blocks;
}

// The longest row that is kept in registers.
template <class T>
constexpr bool fits_registers(int64_t num_classes) {
  return max_packets<T>(num_classes) <= 512 * 8;
}

template <class T>
int64_t cross_entropy_register_rows(const CrossEntropyParams& params, Stream stream) {
  const int64_t packets = max_packets<T>(params.num_classes);
  if (packets <= 2) return launch_register_rows<T, RowGeometry<2, 1>>(params, stream);
  if (packets <= 4) return launch_register_rows<T, RowGeometry<4, 1>>(params, stream);
  if (packets <= 8) return launch_register_rows<T, RowGeometry<8, 1>>(params, stream);
  if (packets <= 16) return launch_register_rows<T, RowGeometry<16, 1>>(params, stream);
  if (packets <= 32) return launch_register_rows<T, RowGeometry<32, 1>>(params, stream);
  if (packets <= 128) return launch_register_rows<T, RowGeometry<32, 4>>(params, stream);
  if (packets <= 512) return launch_register_rows<T, RowGeometry<128, 4>>(params, stream);
  if (packets <= 2048) return launch_register_rows<T, RowGeometry<512, 4>>(params, stream);
  return launch_register_rows<T, RowGeometry<512, 8>>(params, stream);
}

}  // namespace
}  // namespace fused_losses::cuda
