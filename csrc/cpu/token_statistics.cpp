// The statistics of tokens on the CPU.
// Compiled once per instruction set.
#include "../core/blocks.h"
#include "../core/dtype_dispatch.h"
#include "flush_to_zero.h"
#include "kernels.h"
#include "token_statistics_row_batches.h"
#include "token_statistics_rows.h"

namespace fused_losses::cpu {
namespace {

template <class T, bool kTransformed>
void run_rows(const TokenStatisticsParams& params, Range positions) {
  TokenRows<T, kTransformed> rows(params);
  for (int64_t position = positions.first; position < positions.end; ++position) {
    if (params.gradient == nullptr) {
      rows.forward(position);
    } else {
      rows.backward(position);
    }
  }
}

template <class T>
void run_batches(const TokenStatisticsParams& params, Range positions) {
  TokenRowBatch<T> batch(params);
  for (int64_t first = positions.first; first < positions.end; first += batch.kRows) {
    const int64_t rest = positions.end - first;
    batch.forward(first, rest < batch.kRows ? static_cast<int>(rest) : batch.kRows);
  }
}

template <class T>
void run(const TokenStatisticsParams& params, int64_t block_begin, int64_t block_end) {
  const Range positions = range_of_blocks(block_begin, block_end, params.positions_per_block, params.num_positions);
  if (is_transformed(params.logit_scale, params.softcap)) {
    run_rows<T, true>(params, positions);
  } else if (params.gradient == nullptr && params.num_classes <= kMaxBatchClasses) {
    run_batches<T>(params, positions);
  } else {
    run_rows<T, false>(params, positions);
  }
}

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void token_statistics(const TokenStatisticsParams& params, int64_t block_begin, int64_t block_end) {
  const FlushToZero flush;
  by_dtype(params.dtype, [&](auto element) { run<decltype(element)>(params, block_begin, block_end); });
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
