// Registers torch.ops.fused_losses, and the operator that shows the elementary functions to the tests.
#include <torch/csrc/stable/library.h>

#include "../cpu/capability.h"
#include "schemas.h"
#include "tensors.h"

namespace fused_losses {
namespace {

Tensor elementary_function(const Tensor& input, int64_t function) {
  const ScalarType type = input.scalar_type();
  if (type != accumulation_type(type)) refuse("elementary functions take float32 and float64");
  if (function < 0 || function > static_cast<int64_t>(cpu::ElementaryFunction::Tanh)) {
    refuse("no such elementary function");
  }
  const Tensor source = as_contiguous(input);
  Tensor result = empty(to_vector(source.sizes()), type, source);
  cpu::kernels().elementary_function(static_cast<cpu::ElementaryFunction>(function), to_dtype(type), source.data_ptr(),
                                     result.data_ptr(), source.numel());
  return result;
}

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY(fused_losses, library) { fused_losses::define_schemas(library); }

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  library.impl("elementary_function", TORCH_BOX(&fused_losses::elementary_function));
}
