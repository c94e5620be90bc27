// fused_losses::cross_entropy and its variants on the CPU. See core/cross_entropy.h for the mathematics and
// fused_losses/autograd/cross_entropy.py for how the variants make a differentiable function.
#include <algorithm>
#include <atomic>
#include <numeric>

#include "../cpu/capability.h"
#include "../cpu/transformed_cross_entropy.h"
#include "cpu_target_check.h"
#include "cpu_tensors.h"
#include "cross_entropy_operators.h"
#include "parallel.h"

namespace fused_losses {
namespace {

constexpr int64_t kElementsPerBlock = 8192;    // a thread has at most one block more than another
constexpr int64_t kElementsPerThread = 32768;  // no thread is woken for fewer

// One call: the problem, its denominators and its kernel.
class Call : public CrossEntropyProblem {
 public:
  static constexpr bool kPreparesGradients = true;
  static constexpr bool kRescalesGradients = false;

  Call(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& class_weight,
       const CrossEntropyOptions& options, bool wants_gradient)
      : CrossEntropyProblem(logits, target, class_weight, options, wants_gradient) {
    if (class_weight.has_value() && params.target_kind == TargetKind::SmoothedIndex) set_class_weight_sum();
    const double denominator = mean_denominator();
    if (options.reduction == Reduction::Mean) denominator_ = denominator;
    params.gradient_scale = 1.0 / denominator_;
    choose_kernel();
  }

  Tensor new_gradient() {
    Tensor gradient = empty_gradient(sizes(), gradient_strides(), logits().scalar_type(), logits());
    params.gradient = gradient.data_ptr();
    params.stream_gradient = is_streamed(gradient);
    return gradient;
  }

  void run() const {
    const int64_t elements = params.positions_per_block * params.num_classes;
    const cpu::UnitTransform transform{options().logit_scale, options().softcap};
    std::atomic<bool> lacks_memory = false;
    for_each_block(
        num_blocks(),
        [&](int64_t block_begin, int64_t block_end) {
          if (!transforms_logits_) {
            kernel_(params, block_begin, block_end);
          } else if (!cpu::transformed_cross_entropy(params, transform, kernel_, has_contiguous_classes(), block_begin,
                                                     block_end)) {
            lacks_memory = true;
          }
        },
        std::max<int64_t>(1, kElementsPerThread / elements));
    if (lacks_memory) refuse("not enough memory for the transformed logits of a block");
  }

  // Runs the forward and reduces the losses.
  Tensor run_to_loss() {
    if (options().reduction == Reduction::None) {
      const Tensor losses = new_losses();
      run();
      return cast(losses, loss_type());
    }
    std::vector<double> block_losses(static_cast<size_t>(num_blocks()));
    params.block_losses = block_losses.data();
    run();
    return scalar_tensor(ordered_sum(block_losses) / denominator_, loss_type(), logits());
  }

 private:
  int64_t num_blocks() const { return blocks_of(params.num_positions, params.positions_per_block); }

  void set_class_weight_sum() {
    params.class_weight_sum =
        accumulation() == ScalarType::Double ? sum_of_class_weights<double>() : sum_of_class_weights<float>();
  }

  // Several sums, of which the processor adds to one while it waits for another.
  template <class T>
  double sum_of_class_weights() const {
    constexpr int64_t kSums = 8;
    const T* weight = static_cast<const T*>(params.target.class_weight);
    double sums[kSums] = {};
    int64_t c = 0;
    for (; c + kSums <= params.num_classes; c += kSums) {
      for (int64_t i = 0; i < kSums; ++i) sums[i] += weight[c + i];
    }
    for (; c < params.num_classes; ++c) sums[0] += weight[c];
    return std::accumulate(sums, sums + kSums, 0.0);
  }

  void choose_kernel() {
    const cpu::Kernels& kernels = cpu::kernels();
    if (!has_contiguous_classes()) {
      kernel_ = kernels.cross_entropy_inner_tiles;
    } else if (params.num_classes <= cpu::kMaxTransposedClasses) {
      kernel_ = kernels.cross_entropy_transposed_tiles;
    } else {
      kernel_ = kernels.cross_entropy_rows;
    }
    const bool by_rows = kernel_ == kernels.cross_entropy_rows;
    const bool kernel_transforms =
        by_rows && params.target_kind == TargetKind::Index && params.num_classes <= cpu::kMaxTransformedClasses;
    if (kernel_transforms) params.softcap = options().softcap;
    transforms_logits_ = !kernel_transforms && (options().softcap != 0 || options().logit_scale < 0);
    const int64_t quantum = !by_rows                                      ? cpu::kTilePositions
                            : params.num_classes <= cpu::kMaxBatchClasses ? cpu::kBatchPositions
                                                                          : 1;
    params.positions_per_block = quantum * std::max<int64_t>(1, kElementsPerBlock / (params.num_classes * quantum));
  }

  // Index targets are checked here, whatever the reduction. A mean of targets without weight is NaN, also where label
  // smoothing leaves a loss to divide.
  double mean_denominator() const {
    if (is_probability()) return static_cast<double>(params.num_positions);
    const double weight = check_targets(params.target, params.num_positions);
    return weight == 0 && params.target_kind == TargetKind::SmoothedIndex ? __builtin_nan("") : weight;
  }

  cpu::CrossEntropyKernel* kernel_ = nullptr;
  bool transforms_logits_ = false;  // around the kernel
  double denominator_ = 1;
};

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  fused_losses::CrossEntropyOperators<fused_losses::Call>::implement(library);
}
