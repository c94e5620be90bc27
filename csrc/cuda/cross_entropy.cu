// From the element type of a problem to the translation unit that has its kernels.
#include "kernels.h"

namespace fused_losses::cuda {

template <class T>
int64_t cross_entropy_of(const CrossEntropyParams& params, Stream stream);

int64_t cross_entropy(const CrossEntropyParams& params, Stream stream) {
  switch (params.dtype) {
    case DType::Float32:
      return cross_entropy_of<float>(params, stream);
    case DType::Float64:
      return cross_entropy_of<double>(params, stream);
    case DType::BFloat16:
      return cross_entropy_of<BFloat16>(params, stream);
    case DType::Float16:
      return cross_entropy_of<Float16>(params, stream);
  }
  __builtin_unreachable();
}

}  // namespace fused_losses::cuda
