#include "cross_entropy_with_terms.cuh"

namespace fused_losses::cuda {
template int64_t cross_entropy_with_terms_of<Float16>(const CrossEntropyParams&, Stream);
}
