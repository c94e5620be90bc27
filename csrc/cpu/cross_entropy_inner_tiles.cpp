// Softmax cross-entropy on the CPU, strided classes with a contiguous inner axis.
// Compiled once per instruction set.
#include "cross_entropy_dispatch.h"
#include "cross_entropy_tiles.h"
#include "flush_to_zero.h"
#include "kernels.h"

namespace fused_losses::cpu {
namespace {

struct InnerTiles {
  template <class T, class Mass>
  static void run(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
    sweep_tiles<T, Mass, InnerRuns>(params, block_begin, block_end);
  }
};

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void cross_entropy_inner_tiles(const CrossEntropyParams& params, int64_t block_begin, int64_t block_end) {
  const FlushToZero flush;
  by_type<InnerTiles>(params, block_begin, block_end);
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
