// fused_losses::token_statistics and its backward on the CPU.
#include <algorithm>

#include "../cpu/capability.h"
#include "cpu_target_check.h"
#include "cpu_tensors.h"
#include "parallel.h"
#include "token_statistics_operators.h"

namespace fused_losses {
namespace {

constexpr int64_t kElementsPerBlock = 8192;
constexpr int64_t kElementsPerThread = 32768;  // no thread is woken for fewer

struct Call : TokenStatisticsProblem {
  Call(const Tensor& logits, const Tensor& target, const TokenStatisticsOptions& options)
      : TokenStatisticsProblem(logits, target, options) {
    params.positions_per_block = std::max<int64_t>(1, kElementsPerBlock / params.num_classes);
    check_targets(params.target, params.num_positions);
  }

  Tensor new_gradient() {
    const std::vector<int64_t> sizes = gradient_sizes();
    const Tensor gradient = empty_gradient(sizes, contiguous_strides(sizes), logits().scalar_type(), logits());
    set_gradient(gradient);
    return gradient;
  }

  void run() const {
    const auto kernel = cpu::kernels().token_statistics;
    const int64_t elements = params.positions_per_block * params.num_classes;
    for_each_block(
        blocks_of(params.num_positions, params.positions_per_block),
        [&](int64_t block_begin, int64_t block_end) { kernel(params, block_begin, block_end); },
        std::max<int64_t>(1, kElementsPerThread / elements));
  }
};

}  // namespace
}  // namespace fused_losses

STABLE_TORCH_LIBRARY_IMPL(fused_losses, CPU, library) {
  fused_losses::TokenStatisticsOperators<fused_losses::Call>::implement(library);
}
