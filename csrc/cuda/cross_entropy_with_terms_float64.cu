#include "cross_entropy_with_terms.cuh"

namespace fused_losses::cuda {
template int64_t cross_entropy_with_terms_of<double>(const CrossEntropyParams&, Stream);
}
