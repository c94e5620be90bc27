// The binary losses in every mode, against the formulas in the documentation of torch.nn.BCELoss and
// torch.nn.BCEWithLogitsLoss, and Note [Focal loss].
#pragma once

#include <algorithm>
#include <vector>

#include "targets.h"

namespace fused_losses::kernel_checks {

// A weight that is broadcast: sizes and strides of the input's axes, the last one adjacent.
struct Broadcast {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides;

  int64_t offset(int64_t element) const {
    int64_t result = 0;
    for (size_t dim = sizes.size(); dim-- > 0;) {
      result += element % sizes[dim] * strides[dim];
      element /= sizes[dim];
    }
    return result;
  }
  int64_t num_elements() const {
    int64_t product = 1;
    for (const int64_t size : sizes) product *= size;
    return product;
  }
};

enum class BinaryLoss { Probability, Logit, Focal };

struct BinaryCase {
  DType dtype;
  DType target_dtype;
  BinaryLoss loss;
  int64_t elements;
  int64_t input_past_alignment = 0;
  int64_t other_past_alignment = 0;  // of target, losses, gradient and grad_output
  Broadcast weight = {};             // none without sizes
  DType weight_dtype = DType::Float32;
  Broadcast pos_weight = {};

  bool with_logits() const { return loss != BinaryLoss::Probability; }
  const char* name() const {
    constexpr const char* kNames[] = {"binary_cross_entropy", "binary_cross_entropy_with_logits", "sigmoid_focal_loss"};
    return kNames[static_cast<int>(loss)];
  }
};

class BinaryCheck {
 public:
  explicit BinaryCheck(const BinaryCase& test)
      : case_(test),
        loss_tolerance_(tolerance_of(test.target_dtype, 10)),
        sum_tolerance_(tolerance_of(accumulation_of(test.dtype), 10)),
        random_(static_cast<uint64_t>(test.elements)),
        input_(format_of(test.dtype), test.elements, test.input_past_alignment),
        target_(format_of(test.target_dtype), test.elements, test.other_past_alignment),
        weight_(format_of(test.weight_dtype), extent(test.weight), 1),
        pos_weight_(format_of(test.weight_dtype), extent(test.pos_weight), 1) {
    random_.fill(input_, test.with_logits() ? -6 : 0.01, test.with_logits() ? 6 : 0.99);
    random_.fill(target_, 0, 1);
    random_.fill(weight_, 0.5, 1.5);
    random_.fill(pos_weight_, 0.5, 1.5);
    // The logarithms that are cut, certain predictions.
    if (!test.with_logits() && test.elements > 6 && test.dtype != DType::Float16) {
      for (int64_t i = 0; i < 6; ++i) {
        input_.set(i, i % 2 == 0 ? 0 : 1);
        target_.set(i, static_cast<double>(i / 2) / 2);
      }
    }
    parameters_ = {};
    parameters_.dtype = test.dtype;
    parameters_.target_dtype = test.target_dtype;
    parameters_.num_elements = test.elements;
    parameters_.input = input_.data();
    parameters_.target = target_.data();
    parameters_.weight = operand(test.weight, weight_);
    parameters_.pos_weight = operand(test.pos_weight, pos_weight_);
    parameters_.gradient_scale = kScale;
    parameters_.focal_alpha = kAlpha;
    parameters_.focal_gamma = kGamma;
    for (int64_t i = 0; i < test.elements; ++i) expect_element(i);
  }

  void run() {
    char name[200];
    std::snprintf(name, sizeof name, "%s and %s %s [%lld] past alignment=%lld,%lld axes=%zu,%zu", name_of(case_.dtype),
                  name_of(case_.target_dtype), case_.name(), static_cast<long long>(case_.elements),
                  static_cast<long long>(case_.input_past_alignment),
                  static_cast<long long>(case_.other_past_alignment), case_.weight.sizes.size(),
                  case_.pos_weight.sizes.size());
    current_case = name;
    losses();
    with_gradient();
    rescale_gradient();
    backward();
    backward_over_input();
  }

 private:
  static constexpr double kScale = 0.125;
  static constexpr double kAlpha = 0.3;
  static constexpr double kGamma = 1.7;

  static int64_t extent(const Broadcast& broadcast) {
    int64_t last = 0;
    for (size_t dim = 0; dim < broadcast.sizes.size(); ++dim) {
      last += (broadcast.sizes[dim] - 1) * broadcast.strides[dim];
    }
    return last + 1;
  }

  BroadcastOperand operand(const Broadcast& broadcast, const Array& values) const {
    BroadcastOperand result;
    if (broadcast.sizes.empty()) return result;
    result.data = values.data();
    result.dtype = case_.weight_dtype;
    result.num_dims = static_cast<int>(broadcast.sizes.size());
    std::copy(broadcast.sizes.begin(), broadcast.sizes.end(), result.sizes);
    std::copy(broadcast.strides.begin(), broadcast.strides.end(), result.strides);
    return result;
  }

  void expect_element(int64_t i) {
    const double x = input_[i];
    const double y = target_[i];
    const double weight = case_.weight.sizes.empty() ? 1 : weight_[case_.weight.offset(i)];
    double loss;
    double derivative;
    if (case_.with_logits()) {
      const double pos_weight = case_.pos_weight.sizes.empty() ? 1 : pos_weight_[case_.pos_weight.offset(i)];
      const double sigmoid = 1 / (1 + std::exp(-x));
      loss = -pos_weight * y * std::log(sigmoid) - (1 - y) * std::log(1 - sigmoid);
      derivative = (1 - y) * sigmoid - pos_weight * y * (1 - sigmoid);
      if (case_.loss == BinaryLoss::Focal) {
        const double left = sigmoid * (1 - y) + (1 - sigmoid) * y;
        const double left_by_x = (1 - 2 * y) * sigmoid * (1 - sigmoid);
        const double factor = (kAlpha * y + (1 - kAlpha) * (1 - y)) * std::pow(left, kGamma);
        derivative = factor * (derivative + kGamma * loss * left_by_x / left);
        loss *= factor;
      }
    } else {
      loss = -y * std::max(std::log(x), -100.0) - (1 - y) * std::max(std::log(1 - x), -100.0);
      derivative = (x - y) / std::max((1 - x) * x, double{1e-12f});
    }
    losses_.push_back(loss * weight);
    derivatives_.push_back(derivative * weight);
    total_loss_ += losses_.back();
  }

  int64_t call(const ElementwiseParams& parameters) const {
    switch (case_.loss) {
      case BinaryLoss::Probability:
        return cuda::binary_cross_entropy(parameters, nullptr);
      case BinaryLoss::Logit:
        return cuda::binary_cross_entropy_with_logits(parameters, nullptr);
      case BinaryLoss::Focal:
        return cuda::sigmoid_focal_loss(parameters, nullptr);
    }
    __builtin_unreachable();
  }

  template <class Scale>
  void check_gradient(const Array& got, const Scale& scale) const {
    for (int64_t i = 0; i < case_.elements; ++i) {
      const double expected = derivatives_[static_cast<size_t>(i)] * scale(i);
      expect_close("gradient", i, got[i], expected, tolerance_of(case_.dtype, scale(i)));
    }
  }

  void losses() {
    Array result(format_of(case_.target_dtype), case_.elements, case_.other_past_alignment);
    BlockLosses block_losses;
    ElementwiseParams parameters = parameters_;
    parameters.mode = ElementwiseMode::Loss;
    parameters.losses = result.data();
    parameters.block_losses = block_losses.sums();
    block_losses.check(call(parameters), total_loss_, sum_tolerance_);
    for (int64_t i = 0; i < case_.elements; ++i) {
      expect_close("loss", i, result[i], losses_[static_cast<size_t>(i)], loss_tolerance_);
    }
  }

  void with_gradient() {
    Array gradient(format_of(case_.dtype), case_.elements, case_.other_past_alignment);
    BlockLosses block_losses;
    ElementwiseParams parameters = parameters_;
    parameters.mode = ElementwiseMode::LossAndGradient;
    parameters.gradient = gradient.data();
    parameters.block_losses = block_losses.sums();
    block_losses.check(call(parameters), total_loss_, sum_tolerance_);
    check_gradient(gradient, [](int64_t) { return kScale; });
  }

  // A grad_output of 1 leaves the gradient as it is.
  void rescale_gradient() {
    Array gradient(format_of(case_.dtype), case_.elements, case_.other_past_alignment);
    ElementwiseParams parameters = parameters_;
    parameters.mode = ElementwiseMode::LossAndGradient;
    parameters.gradient = gradient.data();
    const Scalar one(case_.target_dtype, 1);
    parameters.device_grad_output = one.data();
    call(parameters);
    for (int64_t i = 0; i < case_.elements; ++i) expect(gradient.is_untouched(i), "a gradient scaled by 1 was written");
    const Scalar grad_output(case_.target_dtype, -0.75);
    parameters.device_grad_output = grad_output.data();
    call(parameters);
    check_gradient(gradient, [](int64_t) { return -0.75 * kScale; });
  }

  void backward() {
    Array gradient(format_of(case_.dtype), case_.elements, case_.other_past_alignment);
    Array grad_output(format_of(case_.target_dtype), case_.elements, case_.other_past_alignment);
    random_.fill(grad_output, -1, 1);
    ElementwiseParams parameters = parameters_;
    parameters.mode = ElementwiseMode::Backward;
    parameters.gradient = gradient.data();
    parameters.grad_output = grad_output.data();
    call(parameters);
    check_gradient(gradient, [&](int64_t i) { return grad_output[i] * kScale; });
  }

  // Last, as it overwrites the input.
  void backward_over_input() {
    const Scalar grad_output(case_.target_dtype, 1.5);
    ElementwiseParams parameters = parameters_;
    parameters.mode = ElementwiseMode::Backward;
    parameters.gradient = input_.data();
    parameters.device_grad_output = grad_output.data();
    call(parameters);
    check_gradient(input_, [](int64_t) { return 1.5 * kScale; });
  }

  BinaryCase case_;
  Tolerance loss_tolerance_;
  Tolerance sum_tolerance_;
  Random random_;
  Array input_;
  Array target_;
  Array weight_;
  Array pos_weight_;
  ElementwiseParams parameters_;

  double total_loss_ = 0;
  std::vector<double> losses_;
  std::vector<double> derivatives_;
};

}  // namespace fused_losses::kernel_checks
