// fused_losses::token_statistics and its backward on CUDA.
#include "../token_statistics_operators.h"
#include "device.h"

namespace fused_losses::cuda {
namespace {

class Call : public TokenStatisticsProblem {
 public:
  Call(const Tensor& logits, const Tensor& target, const TokenStatisticsOptions& options)
      : TokenStatisticsProblem(logits, target, options), scope_(logits) {}

  Tensor new_gradient() {
    const Tensor gradient = empty(gradient_sizes(), logits().scalar_type(), logits());
    set_gradient(gradient);
    return gradient;
  }

  void run() const { token_statistics(params, scope_.stream()); }

 private:
  DeviceScope scope_;
};

}  // namespace
}  // namespace fused_losses::cuda

STABLE_TORCH_LIBRARY_IMPL(FUSED_LOSSES_LIBRARY, FUSED_LOSSES_DISPATCH_KEY, library) {
  using namespace fused_losses::cuda;
  fused_losses::TokenStatisticsOperators<Call>::implement(library);
}
