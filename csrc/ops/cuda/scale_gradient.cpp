// fused_losses::scale_gradient on CUDA: a gradient times a number that only the device knows.
#include "device.h"

namespace fused_losses::cuda {
namespace {

void multiply(const Tensor& gradient, const Tensor& grad_output) {
  check_device(grad_output, gradient);
  const ScalarType type = gradient.scalar_type();
  const std::vector<int64_t> sizes = to_vector(gradient.sizes());
  const std::vector<int64_t> strides = to_vector(gradient.strides());
  if (dense_strides(sizes, strides) != strides) refuse("the gradient must be dense");
  if (grad_output.numel() != 1 || !is_float_type(grad_output.scalar_type())) refuse("grad_output must be one number");
  const Tensor factor = cast(grad_output, accumulation_type(type));
  const DeviceScope scope(gradient);
  scale_gradient({gradient.data_ptr(), to_dtype(type), gradient.numel(), factor.data_ptr()}, scope.stream());
}

}  // namespace
}  // namespace fused_losses::cuda

STABLE_TORCH_LIBRARY_IMPL(FUSED_LOSSES_LIBRARY, FUSED_LOSSES_DISPATCH_KEY, library) {
  library.impl("scale_gradient", TORCH_BOX(&fused_losses::cuda::multiply));
}
