// fused_losses::cross_entropy and its variants: checks, layout, allocation, dispatch. See core/cross_entropy.h for the
// mathematics and fused_losses/autograd/cross_entropy.py for how the variants make a differentiable function.
#include "../core/cross_entropy.h"

#include <algorithm>
#include <tuple>

#include "../cpu/capability.h"
#include "class_layout.h"
#include "index_target.h"
#include "parallel.h"
#include "tensors.h"

namespace fused_losses {
namespace {

constexpr int64_t kElementsPerBlock = 8192;    // a thread has at most one block more than another
constexpr int64_t kElementsPerThread = 32768;  // no thread is woken for fewer
constexpr int64_t kTransposedClasses = 64;     // up to here a few classes are cheaper transposed than row by row
constexpr int64_t kBatchClasses = 1024;        // up to here rows are swept in batches
constexpr int64_t kTilePositions = 128;        // a tile of the kernels: blocks hold whole tiles,
constexpr int64_t kBatchPositions = 16;        // or whole batches of rows
struct Options {
  Reduction reduction;
  int64_t ignore_index;
  double label_smoothing;
  bool promote;
};

// One call: the tensors that the parameters point into, and the parameters.
class Call {
 public:
  Call(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& class_weight, const Options& options,
       bool wants_gradient)
      : options_(options), sizes_(to_vector(logits.sizes())), shape_(class_shape(sizes_)), logits_(logits) {
    check_cpu(logits);
    check_cpu(target);
    if (!(options.label_smoothing >= 0.0 && options.label_smoothing <= 1.0)) refuse("label_smoothing not in [0, 1]");
    params_.dtype = to_dtype(logits.scalar_type());
    params_.num_classes = shape_.num_classes;
    params_.num_positions = shape_.num_positions;
    params_.label_smoothing = options.label_smoothing;
    class_weight_ = prepare_class_weight(class_weight, shape_.num_classes, logits.scalar_type(), options.promote);
    set_target(target);
    set_layout(wants_gradient);
    const double denominator = mean_denominator();
    params_.gradient_scale = options.reduction == Reduction::Mean ? 1.0 / denominator : 1.0;
    denominator_ = options.reduction == Reduction::Mean ? denominator : 1.0;
  }

  CrossEntropyParams& params() { return params_; }
  const ClassShape& shape() const { return shape_; }
  bool is_probability() const { return params_.target_kind == TargetKind::Probability; }
  ScalarType accumulation() const { return accumulation_type(logits_.scalar_type()); }

  // Probabilities of float32 make a float32 loss, as torch's type promotion does.
  ScalarType loss_type() const {
    if (options_.promote || (is_probability() && target_.scalar_type() != logits_.scalar_type())) {
      return accumulation();
    }
    return logits_.scalar_type();
  }

  // The gradient takes the logits' own place; refused where two of their elements share memory or they were copied.
  void overwrite_logits(const Tensor& logits) {
    if (logits_.data_ptr() != logits.data_ptr() || overlaps(sizes_, to_vector(logits.strides()))) {
      refuse("the gradient cannot be written over these logits");
    }
    params_.gradient = logits.data_ptr();
    params_.gradient_layout = params_.logits_layout;
  }

  Tensor new_gradient() {
    Tensor gradient = empty_gradient(sizes_, gradient_strides_, logits_.scalar_type());
    params_.gradient = gradient.data_ptr();
    params_.stream_gradient = is_streamed(gradient);
    return gradient;
  }

  void run() const {
    const int64_t elements = params_.positions_per_block * params_.num_classes;
    for_each_block(
        num_blocks(), [&](int64_t block_begin, int64_t block_end) { kernel_(params_, block_begin, block_end); },
        std::max<int64_t>(1, kElementsPerThread / elements));
  }

  // Runs the forward and reduces the losses.
  Tensor run_to_loss() {
    if (options_.reduction == Reduction::None) {
      Tensor losses = empty(shape_.position_sizes, accumulation());
      params_.losses = losses.data_ptr();
      run();
      return cast(losses, loss_type());
    }
    std::vector<double> block_losses(static_cast<size_t>(num_blocks()));
    params_.block_losses = block_losses.data();
    run();
    return scalar_tensor(ordered_sum(block_losses) / denominator_, loss_type());
  }

 private:
  int64_t num_blocks() const { return blocks_of(params_.num_positions, params_.positions_per_block); }

  void set_target(const Tensor& target) {
    const std::vector<int64_t> target_sizes = to_vector(target.sizes());
    if (is_float_type(target.scalar_type()) && target_sizes == sizes_) {
      const bool same_type = target.scalar_type() == logits_.scalar_type();
      if (!same_type && !(is_16_bit(logits_.scalar_type()) && target.scalar_type() == ScalarType::Float)) {
        refuse("no kernel for these types of logits and probabilities");
      }
      if (options_.ignore_index >= 0) refuse("ignore_index is for class indices");
      params_.target_kind = TargetKind::Probability;
      params_.probability_dtype = to_dtype(target.scalar_type());
      target_ = target;
      if (class_weight_.has_value()) params_.target.class_weight = class_weight_->data_ptr();
      return;
    }
    if (!is_index_type(target.scalar_type())) refuse("targets must be class indices or probabilities");
    if (target_sizes != shape_.position_sizes) refuse("the target's shape does not fit the input's");
    params_.target_kind = options_.label_smoothing > 0 ? TargetKind::SmoothedIndex : TargetKind::Index;
    target_ = as_contiguous(target);
    params_.target = to_index_target(target_, shape_.num_classes, options_.ignore_index, class_weight_);
    params_.class_weight_sum = class_weight_.has_value() ? sum_of_class_weights() : double(shape_.num_classes);
  }

  double sum_of_class_weights() const {
    double total = 0;
    for (int64_t c = 0; c < shape_.num_classes; ++c) {
      total += accumulation() == ScalarType::Double ? static_cast<const double*>(class_weight_->data_ptr())[c]
                                                    : static_cast<const float*>(class_weight_->data_ptr())[c];
    }
    return total;
  }

  // The gradient keeps the logits' order of axes; what no kernel can walk is made contiguous first, as torch does.
  void set_layout(bool wants_gradient) {
    std::optional<PositionLayout> layout = try_layout(wants_gradient);
    if (!layout.has_value()) {
      logits_ = torch::stable::contiguous(logits_);
      if (is_probability()) target_ = as_contiguous(target_);
      layout = try_layout(wants_gradient);
    }
    params_.logits = logits_.data_ptr();
    params_.inner_size = layout->inner_size;
    params_.logits_layout = layout->layouts[0];
    params_.gradient_layout = layout->layouts[1];
    if (is_probability()) {
      params_.probability_target = target_.data_ptr();
      params_.probability_layout = layout->layouts[2];
    }
    const cpu::Kernels& kernels = cpu::kernels();
    if (!layout->contiguous_classes) {
      kernel_ = kernels.cross_entropy_inner_tiles;
    } else if (params_.num_classes <= kTransposedClasses) {
      kernel_ = kernels.cross_entropy_transposed_tiles;
    } else {
      kernel_ = kernels.cross_entropy_rows;
    }
    const bool by_rows = kernel_ == kernels.cross_entropy_rows;
    const int64_t quantum = !by_rows ? kTilePositions : params_.num_classes <= kBatchClasses ? kBatchPositions : 1;
    params_.positions_per_block = quantum * std::max<int64_t>(1, kElementsPerBlock / (params_.num_classes * quantum));
  }

  std::optional<PositionLayout> try_layout(bool wants_gradient) {
    const std::vector<int64_t> logits_strides = to_vector(logits_.strides());
    gradient_strides_ = wants_gradient ? dense_strides(logits_strides) : logits_strides;
    std::vector<std::vector<int64_t>> strides{logits_strides, gradient_strides_};
    if (is_probability()) strides.push_back(to_vector(target_.strides()));
    return position_layout(sizes_, shape_.class_dim, strides);
  }

  // Strides without gaps or overlaps in the order of the given ones, as torch.empty_like makes them.
  std::vector<int64_t> dense_strides(const std::vector<int64_t>& strides) const {
    std::vector<size_t> order(sizes_.size());
    for (size_t dim = 0; dim < order.size(); ++dim) order[dim] = dim;
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[a] > strides[b]; });
    std::vector<int64_t> dense(sizes_.size());
    int64_t stride = 1;
    for (size_t i = order.size(); i-- > 0;) {
      dense[order[i]] = stride;
      stride *= sizes_[order[i]];
    }
    return dense;
  }

  double mean_denominator() const {
    if (is_probability()) return static_cast<double>(params_.num_positions);
    return check_targets(params_.target, params_.num_positions);
  }

  Options options_;
  std::vector<int64_t> sizes_;
  ClassShape shape_;
  Tensor logits_;
  Tensor target_;
  std::optional<Tensor> class_weight_;
  std::vector<int64_t> gradient_strides_;
  CrossEntropyParams params_{};
  cpu::CrossEntropyKernel* kernel_ = nullptr;
  double denominator_ = 1;
};

Tensor cross_entropy(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& class_weight,
                     int64_t reduction, int64_t ignore_index, double label_smoothing, bool promote) {
  Call call(logits, target, class_weight, {to_reduction(reduction), ignore_index, label_smoothing, promote}, false);
  call.params().mode = CrossEntropyMode::Loss;
  return call.run_to_loss();
}

std::tuple<Tensor, Tensor> cross_entropy_with_gradient(const Tensor& logits, const Tensor& target,
                                                       const std::optional<Tensor>& class_weight, int64_t reduction,
                                                       int64_t ignore_index, double label_smoothing, bool promote) {
  const Reduction kind = to_reduction(reduction);
  if (kind == Reduction::None) refuse("unreduced losses have a gradient only for a grad_output");
  Call call(logits, target, class_weight, {kind, ignore_index, label_smoothing, promote}, true);
  Tensor gradient = call.new_gradient();
  call.params().mode = CrossEntropyMode::LossAndGradient;
  Tensor loss = call.run_to_loss();
  return {loss, gradient};
}

// statistics: [2 or 3, num_positions], the rows' m, S and, with probability targets, Q.
std::tuple<Tensor, Tensor> cross_entropy_with_statistics(const Tensor& logits, const Tensor& target,
                                                         const std::optional<Tensor>& class_weight, int64_t reduction,
                                                         int64_t ignore_index, double label_smoothing, bool promote) {
  Call call(logits, target, class_weight, {to_reduction(reduction), ignore_index, label_smoothing, promote}, false);
  CrossEntropyParams& params = call.params();
  params.mode = CrossEntropyMode::Loss;
  const int64_t num_rows = call.is_probability() ? 3 : 2;
  Tensor statistics = empty({num_rows, params.num_positions}, call.accumulation());
  char* data = static_cast<char*>(statistics.data_ptr());
  const int64_t row_bytes = params.num_positions * static_cast<int64_t>(statistics.element_size());
  params.row_max = data;
  params.row_sum = data + row_bytes;
  params.row_mass = call.is_probability() ? data + 2 * row_bytes : nullptr;
  Tensor loss = call.run_to_loss();
  return {loss, statistics};
}

// What a backward needs besides its call: the statistics of the forward and the gradient of the losses.
class Backward {
 public:
  Backward(Call& call, const Tensor& grad_output, const Tensor& statistics, Reduction reduction) {
    CrossEntropyParams& params = call.params();
    check_cpu(grad_output);
    check_cpu(statistics);
    const std::vector<int64_t> expected{call.is_probability() ? 3 : 2, params.num_positions};
    if (to_vector(statistics.sizes()) != expected || statistics.scalar_type() != call.accumulation() ||
        !statistics.is_contiguous()) {
      refuse("statistics are not those of this call");
    }
    const int64_t num_gradients = reduction == Reduction::None ? params.num_positions : 1;
    if (grad_output.numel() != num_gradients || !is_float_type(grad_output.scalar_type())) {
      refuse("grad_output does not fit the loss");
    }
    gradient_of_losses_ = as_contiguous(cast(grad_output, call.accumulation()));
    char* data = static_cast<char*>(statistics.data_ptr());
    const int64_t row_bytes = params.num_positions * static_cast<int64_t>(statistics.element_size());
    params.row_max = data;
    params.row_sum = data + row_bytes;
    params.row_mass = call.is_probability() ? data + 2 * row_bytes : nullptr;
    params.grad_output = gradient_of_losses_.data_ptr();
    params.grad_output_stride = reduction == Reduction::None ? 1 : 0;
    params.mode = CrossEntropyMode::Backward;
  }

 private:
  Tensor gradient_of_losses_;
};

Tensor cross_entropy_backward(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                              const std::optional<Tensor>& class_weight, const Tensor& statistics, int64_t reduction,
                              int64_t ignore_index, double label_smoothing, bool promote) {
  const Reduction kind = to_reduction(reduction);
  Call call(logits, target, class_weight, {kind, ignore_index, label_smoothing, promote}, true);
  const Backward backward(call, grad_output, statistics, kind);
  Tensor gradient = call.new_gradient();
  call.run();
  return gradient;
}

void cross_entropy_backward_over_logits(const Tensor& grad_output, const Tensor& logits, const Tensor& target,
                                        const std::optional<Tensor>& class_weight, const Tensor& statistics,
                                        int64_t reduction, int64_t ignore_index, double label_smoothing, bool promote) {
  const Reduction kind = to_reduction(reduction);
  Call call(logits, target, class_weight, {kind, ignore_index, label_smoothing, promote}, false);
  const Backward backward(call, grad_output, statistics, kind);
  call.overwrite_logits(logits);
  call.run();
}

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  using namespace fused_losses;
  library.impl("cross_entropy", TORCH_BOX(&cross_entropy));
  library.impl("cross_entropy_forward", TORCH_BOX(&cross_entropy));
  library.impl("cross_entropy_with_gradient", TORCH_BOX(&cross_entropy_with_gradient));
  library.impl("cross_entropy_with_statistics", TORCH_BOX(&cross_entropy_with_statistics));
  library.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
  library.impl("cross_entropy_backward_over_logits", TORCH_BOX(&cross_entropy_backward_over_logits));
}
