#include "cross_entropy.cuh"

namespace fused_losses::cuda {
template int64_t cross_entropy_of<double>(const CrossEntropyParams&, Stream);
}
