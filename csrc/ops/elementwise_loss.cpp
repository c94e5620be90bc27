#include "elementwise_loss.h"

#include <algorithm>

#include "parallel.h"

namespace fused_losses {
namespace {

constexpr int64_t kElementsPerBlock = 32768;

// The axes from the slowest to the fastest in memory.
std::vector<size_t> storage_order(const std::vector<int64_t>& strides) {
  std::vector<size_t> order(strides.size());
  for (size_t dim = 0; dim < order.size(); ++dim) order[dim] = dim;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[a] > strides[b]; });
  return order;
}

// Every element once, no gaps: memory can be swept as if it had one axis.
bool is_dense(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  const std::vector<size_t> order = storage_order(strides);
  int64_t expected = 1;
  for (size_t i = order.size(); i-- > 0;) {
    if (sizes[order[i]] == 1) continue;
    if (strides[order[i]] != expected) return false;
    expected *= sizes[order[i]];
  }
  return true;
}

BroadcastOperand broadcast_operand(const std::optional<Tensor>& operand, const std::vector<int64_t>& sizes,
                                   const std::vector<size_t>& order, ScalarType input_type, ScalarType target_type) {
  BroadcastOperand result;
  if (!operand.has_value()) return result;
  check_cpu(*operand);
  const ScalarType type = operand->scalar_type();
  if (type != input_type && type != target_type) refuse("the weight's type is neither the input's nor the target's");
  const int64_t num_dims = static_cast<int64_t>(sizes.size());
  const int64_t missing = num_dims - operand->dim();
  if (missing < 0) refuse("a weight may not enlarge the result");
  result.data = operand->data_ptr();
  result.dtype = to_dtype(type);
  for (const size_t dim : order) {
    const int64_t own_dim = static_cast<int64_t>(dim) - missing;
    const int64_t own_size = own_dim < 0 ? 1 : operand->size(own_dim);
    if (own_size != 1 && own_size != sizes[dim]) refuse("a weight does not broadcast to the input's shape");
    if (sizes[dim] == 1) continue;
    const int64_t stride = own_size == 1 ? 0 : operand->stride(own_dim);
    const int last = result.num_dims - 1;
    if (last >= 0 && result.strides[last] == stride * sizes[dim]) {
      result.sizes[last] *= sizes[dim];
      result.strides[last] = stride;
      continue;
    }
    if (result.num_dims == kMaxBroadcastDims) refuse("a weight has too many axes that do not merge");
    result.sizes[result.num_dims] = sizes[dim];
    result.strides[result.num_dims] = stride;
    ++result.num_dims;
  }
  if (result.num_dims == 0) {
    result.num_dims = 1;
    result.sizes[0] = 1;
  }
  return result;
}

// One call: the tensors that the parameters point into, and the parameters.
class Call {
 public:
  Call(cpu::BinaryCrossEntropyKernel* kernel, const ElementwiseOperands& operands, int64_t reduction)
      : kernel_(kernel),
        reduction_(to_reduction(reduction)),
        input_(operands.input),
        target_(operands.target),
        sizes_(to_vector(operands.input.sizes())) {
    check_cpu(input_);
    check_cpu(target_);
    if (to_vector(target_.sizes()) != sizes_) refuse("the target's shape is not the input's");
    const ScalarType type = input_.scalar_type();
    const ScalarType target_type = target_.scalar_type();
    params_.dtype = to_dtype(type);
    params_.target_dtype = to_dtype(target_type);
    if (type != target_type && !(is_16_bit(type) && target_type == ScalarType::Float)) {
      refuse("no kernel for these types of input and target");
    }
    params_.num_elements = input_.numel();
    if (params_.num_elements == 0) refuse("empty tensors have no kernel");
    params_.elements_per_block = kElementsPerBlock;
    strides_ = to_vector(input_.strides());
    if (!is_dense(sizes_, strides_)) {
      input_ = torch::stable::contiguous(input_);
      strides_ = to_vector(input_.strides());
    }
    target_ = in_storage_order(target_);
    params_.input = input_.data_ptr();
    params_.target = target_.data_ptr();
    const std::vector<size_t> order = storage_order(strides_);
    params_.weight = broadcast_operand(operands.weight, sizes_, order, type, target_type);
    params_.pos_weight = broadcast_operand(operands.pos_weight, sizes_, order, type, target_type);
    denominator_ = reduction_ == Reduction::Mean ? static_cast<double>(params_.num_elements) : 1.0;
    params_.gradient_scale = 1.0 / denominator_;
  }

  BinaryCrossEntropyParams& params() { return params_; }

  // The gradient takes the input's own place.
  void overwrite_input(const Tensor& input) {
    if (input_.data_ptr() != input.data_ptr()) refuse("the gradient cannot be written over this input");
    params_.gradient = input.data_ptr();
  }

  Tensor new_gradient() {
    Tensor gradient = empty_gradient(sizes_, strides_, input_.scalar_type());
    params_.gradient = gradient.data_ptr();
    params_.stream_gradient = is_streamed(gradient);
    return gradient;
  }

  void set_grad_output(const Tensor& grad_output) {
    check_cpu(grad_output);
    const bool is_scalar = reduction_ != Reduction::None;
    if (!is_float_type(grad_output.scalar_type()) || grad_output.numel() != (is_scalar ? 1 : params_.num_elements)) {
      refuse("grad_output does not fit the loss");
    }
    const std::vector<int64_t> strides = to_vector(grad_output.strides());
    // One value for all elements, as the backward of a sum gives it.
    if (is_scalar || std::all_of(strides.begin(), strides.end(), [](int64_t stride) { return stride == 0; })) {
      params_.gradient_scale *= scalar_value(grad_output);
      return;
    }
    if (to_vector(grad_output.sizes()) != sizes_) refuse("grad_output does not fit the loss");
    grad_output_ = in_storage_order(cast(grad_output, target_.scalar_type()));
    params_.grad_output = grad_output_->data_ptr();
  }

  void run() const {
    for_each_block(num_blocks(),
                   [&](int64_t block_begin, int64_t block_end) { kernel_(params_, block_begin, block_end); });
  }

  Tensor run_to_loss(bool checks_range) {
    std::vector<int32_t> faults(checks_range ? static_cast<size_t>(num_blocks()) : 0);
    params_.block_faults = checks_range ? faults.data() : nullptr;
    if (reduction_ == Reduction::None) {
      Tensor losses = empty_strided(sizes_, strides_, target_.scalar_type());
      params_.losses = losses.data_ptr();
      run();
      raise_faults(faults);
      return losses;
    }
    std::vector<double> block_losses(static_cast<size_t>(num_blocks()));
    params_.block_losses = block_losses.data();
    run();
    raise_faults(faults);
    return scalar_tensor(ordered_sum(block_losses) / denominator_, target_.scalar_type());
  }

 private:
  int64_t num_blocks() const { return blocks_of(params_.num_elements, params_.elements_per_block); }

  // The same elements at the input's strides.
  Tensor in_storage_order(const Tensor& tensor) const {
    if (to_vector(tensor.strides()) == strides_) return tensor;
    Tensor reordered = empty_strided(sizes_, strides_, tensor.scalar_type());
    torch::stable::copy_(reordered, tensor);
    return reordered;
  }

  static void raise_faults(const std::vector<int32_t>& faults) {
    int32_t combined = 0;
    for (const int32_t fault : faults) combined |= fault;
    if (combined & kInputOutOfRange) throw std::runtime_error("all elements of input should be between 0 and 1");
    if (combined & kTargetOutOfRange) throw std::runtime_error("all elements of target should be between 0 and 1");
  }

  cpu::BinaryCrossEntropyKernel* kernel_;
  Reduction reduction_;
  Tensor input_;
  Tensor target_;
  std::optional<Tensor> grad_output_;
  std::vector<int64_t> sizes_;
  std::vector<int64_t> strides_;
  double denominator_ = 1;
  BinaryCrossEntropyParams params_{};
};

}  // namespace

Tensor elementwise_loss(cpu::BinaryCrossEntropyKernel* kernel, const ElementwiseOperands& operands, int64_t reduction,
                        bool checks_range) {
  Call call(kernel, operands, reduction);
  call.params().mode = ElementwiseMode::Loss;
  return call.run_to_loss(checks_range);
}

std::tuple<Tensor, Tensor> elementwise_loss_with_gradient(cpu::BinaryCrossEntropyKernel* kernel,
                                                          const ElementwiseOperands& operands, int64_t reduction,
                                                          bool checks_range) {
  if (to_reduction(reduction) == Reduction::None) refuse("unreduced losses have a gradient only for a grad_output");
  Call call(kernel, operands, reduction);
  Tensor gradient = call.new_gradient();
  call.params().mode = ElementwiseMode::LossAndGradient;
  Tensor loss = call.run_to_loss(checks_range);
  return {loss, gradient};
}

Tensor elementwise_loss_backward(cpu::BinaryCrossEntropyKernel* kernel, const Tensor& grad_output,
                                 const ElementwiseOperands& operands, int64_t reduction) {
  Call call(kernel, operands, reduction);
  call.set_grad_output(grad_output);
  Tensor gradient = call.new_gradient();
  call.params().mode = ElementwiseMode::Backward;
  call.run();
  return gradient;
}

void elementwise_loss_backward_over_input(cpu::BinaryCrossEntropyKernel* kernel, const Tensor& grad_output,
                                          const ElementwiseOperands& operands, int64_t reduction) {
  Call call(kernel, operands, reduction);
  call.set_grad_output(grad_output);
  call.overwrite_input(operands.input);
  call.params().mode = ElementwiseMode::Backward;
  call.run();
}

}  // namespace fused_losses
