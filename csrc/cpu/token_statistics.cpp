// The statistics of tokens on the CPU.
// Compiled once per instruction set.
#include "flush_to_zero.h"
#include "kernels.h"
#include "token_statistics_rows.h"

namespace fused_losses::cpu {
namespace {

template <class T, bool kTransformed>
void run_rows(const TokenStatisticsParams& params, int64_t block_begin, int64_t block_end) {
  TokenRows<T, kTransformed> rows(params);
  const int64_t first = block_begin * params.positions_per_block;
  const int64_t end = block_end * params.positions_per_block;
  const int64_t last = end < params.num_positions ? end : params.num_positions;
  for (int64_t position = first; position < last; ++position) {
    if (params.gradient == nullptr) {
      rows.forward(position);
    } else {
      rows.backward(position);
    }
  }
}

template <class T>
void by_transform(const TokenStatisticsParams& params, int64_t block_begin, int64_t block_end) {
  if (is_transformed(params.logit_scale, params.softcap)) {
    run_rows<T, true>(params, block_begin, block_end);
  } else {
    run_rows<T, false>(params, block_begin, block_end);
  }
}

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void token_statistics(const TokenStatisticsParams& params, int64_t block_begin, int64_t block_end) {
  const FlushToZero flush;
  switch (params.dtype) {
    case DType::Float32:
      return by_transform<float>(params, block_begin, block_end);
    case DType::Float64:
      return by_transform<double>(params, block_begin, block_end);
    case DType::BFloat16:
      return by_transform<BFloat16>(params, block_begin, block_end);
    case DType::Float16:
      return by_transform<Float16>(params, block_begin, block_end);
  }
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
