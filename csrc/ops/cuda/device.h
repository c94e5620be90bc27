// The device of a call and what its kernels share: the current stream, scratch memory, the reduction of the losses. The
// host never waits for any of it.
#pragma once

#include <optional>

#include "../../cuda/kernels.h"
#include "../tensors.h"

#if defined(FUSED_LOSSES_EMULATED)
// The tests run the kernels on the host: see tests/cuda.
#define FUSED_LOSSES_LIBRARY fused_losses_emulated
#define FUSED_LOSSES_DISPATCH_KEY CPU
#else
#include <torch/csrc/stable/accelerator.h>
#define FUSED_LOSSES_LIBRARY fused_losses
#define FUSED_LOSSES_DISPATCH_KEY CUDA
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
#endif

namespace fused_losses::cuda {

// Logits without a batch axis whose target is ignored have a mean of 0 on a GPU, by torch, and of NaN on a CPU: see
// nll_loss_forward_reduce_cuda_kernel_1d in ATen and the discussion in pytorch/pytorch#64572.
#if defined(FUSED_LOSSES_EMULATED)
inline bool is_zero_if_ignored(const Tensor&) { return false; }
#else
inline bool is_zero_if_ignored(const Tensor& input) { return input.dim() == 1; }
#endif

// The tensor's device is the current one as long as this lives.
class DeviceScope {
 public:
#if defined(FUSED_LOSSES_EMULATED)
  explicit DeviceScope(const Tensor&) {}
  Stream stream() const { return nullptr; }
#else
  explicit DeviceScope(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
  Stream stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Stream stream_ = nullptr;
#endif
};

// Sums that are formed on the device, 64 KiB where there is one: see kernels.h.
class Scratch {
 public:
  explicit Scratch(const Tensor& like) : like_(like) {}
  double* block_sums() {
    if (!memory_.has_value()) memory_ = empty({kMaxBlockSums + 3}, ScalarType::Double, like_);
    return static_cast<double*>(memory_->data_ptr());
  }
  MeanOfTargets mean() { return {block_sums() + kMaxBlockSums, block_sums() + kMaxBlockSums + 1}; }
  double* class_weight_sum() { return block_sums() + kMaxBlockSums + 2; }

 private:
  Tensor like_;
  std::optional<Tensor> memory_;
};

// Refuses what is no gradient that the forward of this call made, with these sizes and strides.
inline void check_gradient(const Tensor& gradient, const std::vector<int64_t>& sizes,
                           const std::vector<int64_t>& strides, const Tensor& input) {
  check_tensor(gradient, input);
  if (to_vector(gradient.sizes()) != sizes || to_vector(gradient.strides()) != strides ||
      gradient.scalar_type() != input.scalar_type()) {
    refuse("the gradient is not that of this call");
  }
}

// The scalar loss from `count` partial sums, over a divisor known here or on the device.
inline Tensor reduced_loss(Scratch& scratch, int64_t count, double divisor, const double* denominator, ScalarType type,
                           const Tensor& like, Stream stream) {
  Tensor loss = empty({}, type, like);
  reduce_losses({scratch.block_sums(), count, divisor, denominator, loss.data_ptr(), to_dtype(type)}, stream);
  return loss;
}

}  // namespace fused_losses::cuda
