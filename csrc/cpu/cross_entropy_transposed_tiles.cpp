// Softmax cross-entropy on the CPU, few contiguous classes.
// Compiled once per instruction set.
#include "cross_entropy_dispatch.h"
#include "cross_entropy_tiles.h"
#include "flush_to_zero.h"
#include "kernels.h"

namespace fused_losses::cpu {
namespace {

struct TransposedTiles {
  template <class T, class Mass>
  static void run(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
    sweep_tiles<T, Mass, TransposedRows<Accumulation<T>>>(params, block_begin, block_end);
  }
};

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void cross_entropy_transposed_tiles(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  const FlushToZero flush;
  by_type<TransposedTiles>(params, block_begin, block_end);
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
