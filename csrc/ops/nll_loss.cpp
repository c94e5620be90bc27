// fused_losses::nll_loss and its backward: checks, layout, allocation, dispatch.
#include "../core/nll_loss.h"

#include <algorithm>
#include <cstring>

#include "../cpu/capability.h"
#include "class_layout.h"
#include "index_target.h"
#include "parallel.h"
#include "tensors.h"

namespace fused_losses {
namespace {

constexpr int64_t kPositionsPerBlock = 2048;
// Waking a thread costs as much as gathering some thousands of elements.
constexpr int64_t kBlocksPerThread = 2;
constexpr int64_t kBytesPerBlock = int64_t(1) << 20;

void check_target(const Tensor& target, const ClassShape& shape) {
  check_cpu(target);
  if (!is_index_type(target.scalar_type())) refuse("targets must be class indices");
  if (to_vector(target.sizes()) != shape.position_sizes) refuse("the target's shape does not fit the input's");
}

int64_t num_blocks(const NLLLossParams& params) { return blocks_of(params.num_positions, params.positions_per_block); }

void run(const NLLLossParams& params) {
  const auto kernel = cpu::kernels().nll_loss;
  for_each_block(
      num_blocks(params), [&](int64_t block_begin, int64_t block_end) { kernel(params, block_begin, block_end); },
      kBlocksPerThread);
}

Tensor nll_loss(const Tensor& input, const Tensor& target, const std::optional<Tensor>& weight, int64_t reduction,
                int64_t ignore_index, bool promote) {
  check_cpu(input);
  const ScalarType type = input.scalar_type();
  NLLLossParams params{};
  params.dtype = to_dtype(type);
  const std::vector<int64_t> sizes = to_vector(input.sizes());
  const ClassShape shape = class_shape(sizes);
  check_target(target, shape);
  const Tensor indices = as_contiguous(target);
  const std::optional<Tensor> class_weight = prepare_class_weight(weight, shape.num_classes, type, promote);
  params.target = to_index_target(indices, shape.num_classes, ignore_index, class_weight);
  params.num_classes = shape.num_classes;
  params.num_positions = shape.num_positions;
  params.positions_per_block = kPositionsPerBlock;

  Tensor source = input;
  std::optional<PositionLayout> layout = position_layout(sizes, shape.class_dim, {to_vector(source.strides())});
  if (!layout.has_value()) {
    source = torch::stable::contiguous(input);
    layout = position_layout(sizes, shape.class_dim, {to_vector(source.strides())});
  }
  params.input = source.data_ptr();
  params.inner_size = layout->inner_size;
  params.input_layout = layout->layouts[0];

  std::vector<TargetScan> block_targets(static_cast<size_t>(num_blocks(params)));
  params.block_targets = block_targets.data();
  const ScalarType loss_type = promote ? accumulation_type(type) : type;
  const Reduction kind = to_reduction(reduction);
  if (kind == Reduction::None) {
    Tensor losses = empty(shape.position_sizes, accumulation_type(type));
    params.losses = losses.data_ptr();
    run(params);
    total_weight(params.target, block_targets);
    return cast(losses, loss_type);
  }
  std::vector<double> block_losses(block_targets.size());
  params.block_losses = block_losses.data();
  run(params);
  const double weight_of_targets = total_weight(params.target, block_targets);
  return scalar_tensor(ordered_sum(block_losses) / (kind == Reduction::Mean ? weight_of_targets : 1.0), loss_type);
}

void fill_with_zeros(const Tensor& tensor) {
  char* data = static_cast<char*>(tensor.data_ptr());
  const int64_t bytes = tensor.numel() * static_cast<int64_t>(tensor.element_size());
  for_each_block(blocks_of(bytes, kBytesPerBlock), [&](int64_t block_begin, int64_t block_end) {
    const int64_t begin = block_begin * kBytesPerBlock;
    std::memset(data + begin, 0, static_cast<size_t>(std::min(block_end * kBytesPerBlock, bytes) - begin));
  });
}

// The gradient needs nothing of the input but its shape and type.
Tensor nll_loss_backward(const Tensor& grad_output, const Tensor& target, const std::optional<Tensor>& weight,
                         std::vector<int64_t> input_sizes, ScalarType input_type, int64_t reduction,
                         int64_t ignore_index, bool promote) {
  NLLLossParams params{};
  params.dtype = to_dtype(input_type);
  const ClassShape shape = class_shape(input_sizes);
  check_target(target, shape);
  check_cpu(grad_output);
  const Reduction kind = to_reduction(reduction);
  if (grad_output.numel() != (kind == Reduction::None ? shape.num_positions : 1) ||
      !is_float_type(grad_output.scalar_type())) {
    refuse("grad_output does not fit the loss");
  }
  const Tensor indices = as_contiguous(target);
  const std::optional<Tensor> class_weight = prepare_class_weight(weight, shape.num_classes, input_type, promote);
  const Tensor gradient_of_losses = as_contiguous(cast(grad_output, accumulation_type(input_type)));
  params.target = to_index_target(indices, shape.num_classes, ignore_index, class_weight);
  params.num_classes = shape.num_classes;
  params.num_positions = shape.num_positions;
  params.inner_size = 1;
  for (size_t dim = 2; dim < input_sizes.size(); ++dim) params.inner_size *= input_sizes[dim];
  params.positions_per_block = kPositionsPerBlock;
  const double total_weight = check_targets(params.target, params.num_positions);
  params.gradient_scale = kind == Reduction::Mean ? 1.0 / total_weight : 1.0;
  params.grad_output = gradient_of_losses.data_ptr();
  params.grad_output_stride = kind == Reduction::None ? 1 : 0;
  Tensor gradient = empty_gradient(input_sizes, contiguous_strides(input_sizes), input_type);
  fill_with_zeros(gradient);
  params.gradient = gradient.data_ptr();
  run(params);
  return gradient;
}

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  using namespace fused_losses;
  library.impl("nll_loss", TORCH_BOX(&nll_loss));
  library.impl("nll_loss_forward", TORCH_BOX(&nll_loss));
  library.impl("nll_loss_backward", TORCH_BOX(&nll_loss_backward));
}
