// The entry points of csrc/cuda/kernels.h, answered by the CPU kernels as csrc/ops calls them: the checks in
// tests/cuda/emulation/kernels hold for both.
#include "entry_points.h"

#include <cstring>
#include <new>
#include <stdexcept>
#include <vector>

#include "cpu/capability.h"
#include "cuda/kernels.h"
#include "ops/transformed_cross_entropy.h"

namespace fused_losses::cuda {
namespace {

using cpu::kernels;

// Whole tiles and batches of rows, and small enough for several blocks in a check.
constexpr int64_t kPositionsPerBlock = 128;
constexpr int64_t kElementsPerBlock = 4096;

int64_t blocks_of(int64_t count, int64_t per_block) { return (count + per_block - 1) / per_block; }

double read_scalar(const void* value, DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return *static_cast<const float*>(value);
    case DType::Float64:
      return *static_cast<const double*>(value);
    case DType::BFloat16: {
      const uint32_t bits = static_cast<uint32_t>(*static_cast<const uint16_t*>(value)) << 16;
      float single;
      std::memcpy(&single, &bits, sizeof single);
      return single;
    }
    case DType::Float16:
      return static_cast<float>(*static_cast<const _Float16*>(value));
  }
  __builtin_unreachable();
}

DType accumulation_of(DType dtype) { return dtype == DType::Float64 ? DType::Float64 : DType::Float32; }

// One block at a time, from the last to the first: none may lean on another.
template <class Params, class Kernel>
int64_t run_blocks(const Kernel& kernel, const Params& params, int64_t num_blocks) {
  for (int64_t block = num_blocks; block-- > 0;) kernel(params, block, block + 1);
  return num_blocks;
}

cpu::CrossEntropyKernel* kernel_for(const CrossEntropyParams& params) {
  if (params.logits_layout.class_stride != 1) return kernels().cross_entropy_inner_tiles;
  const bool is_transposed = kernel_checks::ways.transposes && params.num_classes <= cpu::kMaxTransposedClasses;
  return is_transposed ? kernels().cross_entropy_transposed_tiles : kernels().cross_entropy_rows;
}

int64_t elementwise(cpu::BinaryCrossEntropyKernel* kernel, ElementwiseParams params, bool checks_range) {
  if (params.device_grad_output != nullptr) {
    const double grad_output = read_scalar(params.device_grad_output, params.target_dtype);
    if (params.mode == ElementwiseMode::LossAndGradient && grad_output == 1) return 0;  // made for 1 already
    params.gradient_scale *= grad_output;
  }
  params.elements_per_block = kElementsPerBlock;
  const int64_t num_blocks = blocks_of(params.num_elements, kElementsPerBlock);
  std::vector<int32_t> faults(checks_range ? static_cast<size_t>(num_blocks) : 0);
  if (checks_range) params.block_faults = faults.data();
  run_blocks(kernel, params, num_blocks);
  for (const int32_t fault : faults) {
    if (fault != 0) throw std::runtime_error("values outside [0, 1]");
  }
  return num_blocks;
}

}  // namespace

int64_t cross_entropy(const CrossEntropyParams& call, Stream) {
  CrossEntropyParams params = call;
  const DType accumulation = accumulation_of(params.dtype);
  params.class_weight_sum = params.device_class_weight_sum != nullptr ? *params.device_class_weight_sum
                                                                      : static_cast<double>(params.num_classes);
  if (params.device_gradient_scale != nullptr) {
    params.gradient_scale = read_scalar(params.device_gradient_scale, accumulation);
  }
  if (params.mode == CrossEntropyMode::LossAndGradient && params.grad_output != nullptr) {
    params.expected_grad_output = read_scalar(params.grad_output, accumulation);
    params.grad_output = nullptr;
    if (params.expected_grad_output == 1) return 0;  // made for 1 already
  }
  params.positions_per_block = kPositionsPerBlock;
  params.stream_gradient = kernel_checks::ways.streams && params.gradient != params.logits;
  cpu::CrossEntropyKernel* const kernel = kernel_for(params);
  const int64_t num_blocks = blocks_of(params.num_positions, kPositionsPerBlock);
  const bool kernel_transforms = kernel == kernels().cross_entropy_rows && params.target_kind == TargetKind::Index;
  const cpu::UnitTransform transform{params.logit_scale, params.softcap};
  if (kernel_transforms || (transform.softcap == 0 && transform.logit_scale > 0)) {
    return run_blocks(kernel, params, num_blocks);
  }
  params.softcap = 0;
  const auto transformed = [&](const CrossEntropyParams& each, int64_t begin, int64_t end) {
    if (!transformed_cross_entropy(each, transform, kernel, begin, end)) throw std::bad_alloc();
  };
  return run_blocks(transformed, params, num_blocks);
}

int64_t nll_loss(const NLLLossParams& call, Stream) {
  NLLLossParams params = call;
  if (params.device_gradient_scale != nullptr) {
    params.gradient_scale = read_scalar(params.device_gradient_scale, accumulation_of(params.dtype));
  }
  params.positions_per_block = kPositionsPerBlock;
  const int64_t num_blocks = blocks_of(params.num_positions, kPositionsPerBlock);
  std::vector<TargetScan> scans(static_cast<size_t>(num_blocks));
  params.block_targets = scans.data();
  if (params.gradient != nullptr) {
    constexpr int64_t kBytes[] = {4, 8, 2, 2};
    const int64_t bytes = params.num_positions * params.num_classes * kBytes[static_cast<int>(params.dtype)];
    std::memset(params.gradient, 0, static_cast<size_t>(bytes));
  }
  return run_blocks(kernels().nll_loss, params, num_blocks);
}

int64_t binary_cross_entropy(const ElementwiseParams& params, Stream) {
  return elementwise(kernels().binary_cross_entropy, params, true);
}
int64_t binary_cross_entropy_with_logits(const ElementwiseParams& params, Stream) {
  return elementwise(kernels().binary_cross_entropy_with_logits, params, false);
}
int64_t sigmoid_focal_loss(const ElementwiseParams& params, Stream) {
  return elementwise(kernels().sigmoid_focal_loss, params, false);
}

void token_statistics(const TokenStatisticsParams& call, Stream) {
  TokenStatisticsParams params = call;
  params.positions_per_block = 2;
  run_blocks(kernels().token_statistics, params, blocks_of(params.num_positions, params.positions_per_block));
}

// Of the checks only the divisor of a mean asks for these two.
void weigh_targets(const IndexTarget& target, int64_t num_positions, DType dtype, const MeanOfTargets& mean, double*,
                   Stream) {
  *mean.denominator = kernels().scan_targets(target, 0, num_positions).weight;
  if (accumulation_of(dtype) == DType::Float64) {
    *static_cast<double*>(mean.inverse) = 1 / *mean.denominator;
  } else {
    *static_cast<float*>(mean.inverse) = static_cast<float>(1 / *mean.denominator);
  }
}

void sum_class_weights(const IndexTarget& target, double* sum, Stream) {
  *sum = 0;
  for (int64_t c = 0; c < target.num_classes; ++c) {
    *sum += target.double_weight ? static_cast<const double*>(target.class_weight)[c]
                                 : static_cast<const float*>(target.class_weight)[c];
  }
}

}  // namespace fused_losses::cuda
