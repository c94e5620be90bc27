// The entry points of the CPU kernels. Every instruction set defines them in a namespace of its own; the build names it
// FUSED_LOSSES_CAPABILITY when it compiles the kernel sources.
#pragma once

#include <cstdint>

#include "../core/cross_entropy.h"
#include "../core/elementwise.h"
#include "../core/index_target.h"
#include "../core/nll_loss.h"
#include "../core/token_statistics.h"

namespace fused_losses::cpu {

enum class ElementaryFunction : int64_t { Exp, Log, Log1p, LogOfComplement, Log1pOfAny, Tanh };

// x = factor * unit: the unit is tanh(logit_scale * l / softcap), and softcap the factor, or without a softcap (0) the
// logit with the sign of logit_scale. So the factor is positive.
struct UnitTransform {
  double logit_scale;
  double softcap;
};

// What the blocks of cross-entropy are made of: whole tiles of positions, or whole batches of rows.
constexpr int64_t kTilePositions = 128;
constexpr int64_t kBatchPositions = 16;        // as many rows as the widest register has lanes
constexpr int64_t kMaxTransposedClasses = 64;  // of cross_entropy_transposed_tiles, whose buffer holds no more
constexpr int64_t kMaxBatchClasses = 1024;     // up to here cross_entropy_rows sweeps batches

// Rows of index targets with no more classes are transformed by cross_entropy_rows itself.
constexpr int64_t kMaxTransformedClasses = int64_t(1) << 19;

// A kernel works on a range of blocks; blocks have a fixed size, so that sums do not depend on the number of threads.
using CrossEntropyKernel = void(const CrossEntropyParams&, int64_t block_begin, int64_t block_end);
using NLLLossKernel = void(const NLLLossParams&, int64_t block_begin, int64_t block_end);
using BinaryCrossEntropyKernel = void(const ElementwiseParams&, int64_t block_begin, int64_t block_end);
using TokenStatisticsKernel = void(const TokenStatisticsParams&, int64_t block_begin, int64_t block_end);
// `slopes`, the derivatives of tanh at the units, are null where nobody needs them, and without a softcap.
using LogitUnitsKernel = void(const UnitTransform&, DType, const void* logits, void* units, void* slopes,
                              int64_t count);
using LogitGradientKernel = void(const UnitTransform&, DType, const void* slopes, const void* unit_gradient,
                                 void* gradient, int64_t count);
using ScanTargetsKernel = TargetScan(const IndexTarget&, int64_t begin, int64_t end);
using ElementaryFunctionKernel = void(ElementaryFunction, DType, const void* input, void* output, int64_t count);

#define FUSED_LOSSES_DECLARE_KERNELS(capability)             \
  namespace capability {                                     \
  CrossEntropyKernel cross_entropy_rows;                     \
  CrossEntropyKernel cross_entropy_transposed_tiles;         \
  CrossEntropyKernel cross_entropy_inner_tiles;              \
  NLLLossKernel nll_loss;                                    \
  BinaryCrossEntropyKernel binary_cross_entropy;             \
  BinaryCrossEntropyKernel binary_cross_entropy_with_logits; \
  BinaryCrossEntropyKernel sigmoid_focal_loss;               \
  TokenStatisticsKernel token_statistics;                    \
  LogitUnitsKernel logit_units;                              \
  LogitGradientKernel logit_gradient;                        \
  ScanTargetsKernel scan_targets;                            \
  ElementaryFunctionKernel elementary_function;              \
  }

FUSED_LOSSES_DECLARE_KERNELS(baseline)
FUSED_LOSSES_DECLARE_KERNELS(avx2)
FUSED_LOSSES_DECLARE_KERNELS(avx512)

}  // namespace fused_losses::cpu
