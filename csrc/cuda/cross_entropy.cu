// From the element type of a problem, and whether it has terms, to the translation unit that has its kernels.
#include "kernels.h"

namespace fused_losses::cuda {

template <class T>
int64_t cross_entropy_of(const CrossEntropyParams& params, Stream stream);
template <class T>
int64_t cross_entropy_with_terms_of(const CrossEntropyParams& params, Stream stream);

namespace {

template <class T>
int64_t by_terms(const CrossEntropyParams& params, Stream stream) {
  const bool is_plain =
      params.logit_scale == 1 && params.softcap == 0 && params.lse_square_scale == 0 && params.focal_gamma == 0;
  return is_plain ? cross_entropy_of<T>(params, stream) : cross_entropy_with_terms_of<T>(params, stream);
}

}  // namespace

int64_t cross_entropy(const CrossEntropyParams& params, Stream stream) {
  switch (params.dtype) {
    case DType::Float32:
      return by_terms<float>(params, stream);
    case DType::Float64:
      return by_terms<double>(params, stream);
    case DType::BFloat16:
      return by_terms<BFloat16>(params, stream);
    case DType::Float16:
      return by_terms<Float16>(params, stream);
  }
  __builtin_unreachable();
}

}  // namespace fused_losses::cuda
