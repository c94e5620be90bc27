// Softmax cross-entropy on the CPU, many contiguous classes.
// Compiled once per instruction set.
#include "cross_entropy_rows.h"

#include "cross_entropy_dispatch.h"
#include "cross_entropy_row_batches.h"
#include "flush_to_zero.h"
#include "kernels.h"

namespace fused_losses::cpu {
namespace {

struct Rows {
  template <class T, class Mass>
  static void run(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
    if (is_transformed(params.logit_scale, params.softcap)) {
      if constexpr (!Mass::kDense) sweep_rows<T, Mass, true>(params, block_begin, block_end);
    } else if (takes_batches(params)) {
      sweep_row_batches<T, Mass>(params, block_begin, block_end);
    } else {
      sweep_rows<T, Mass, false>(params, block_begin, block_end);
    }
  }
};

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void cross_entropy_rows(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  const FlushToZero flush;
  by_type<Rows>(params, block_begin, block_end);
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
