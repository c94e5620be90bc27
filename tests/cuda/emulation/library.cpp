// The emulated operators as a library of torch: torch.ops.fused_losses_emulated, on CPU tensors.
#include "../../../csrc/ops/schemas.h"
#include "order.h"

STABLE_TORCH_LIBRARY(fused_losses_emulated, library) { fused_losses::define_schemas(library); }

// `order`: the number of an emulation::Order.
extern "C" __attribute__((visibility("default"))) void fused_losses_emulation_set_order(int order, uint64_t seed) {
  using namespace fused_losses::emulation;
  set_order(static_cast<Order>(order), seed);
}
