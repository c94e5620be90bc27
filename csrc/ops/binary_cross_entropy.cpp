// fused_losses::binary_cross_entropy and its variants on the CPU.
#include "../cpu/capability.h"
#include "elementwise_call.h"

namespace fused_losses {
namespace {

struct Call : ElementwiseCall {
  Call(const ElementwiseOperands& operands, int64_t reduction)
      : ElementwiseCall(cpu::kernels().binary_cross_entropy, true, operands, reduction) {}
};

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  fused_losses::BinaryCrossEntropyOperators<fused_losses::Call>::implement(library);
}
