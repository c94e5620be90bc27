#include "cpu_tensors.h"

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "gradient_pool.h"

#if defined(__linux__)
// Torch has it from 2.11 on and this extension must load in 2.10, where it is null.
extern "C" __attribute__((weak)) AOTITorchError torch_from_blob(
    void* data, int64_t ndim, const int64_t* sizes, const int64_t* strides, int64_t storage_offset, int32_t dtype,
    int32_t device_type, int32_t device_index, AtenTensorHandle* result, int32_t layout, const uint8_t* opaque_metadata,
    int64_t opaque_metadata_size, void (*deleter)(void* data, void* context), void* context);
#endif

namespace fused_losses {
namespace {

// Where there is no pool: a fresh gradient of many megabytes costs a page fault every 4 KiB, more time than computing
// it, so 2 MiB pages are asked for.
constexpr size_t kHugePage = size_t(2) << 20;

void advise_huge_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < 2 * kHugePage) return;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  // Advice only: where the kernel does not take it nothing is lost.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

bool can_make_tensors_over_memory() {
#if defined(__linux__)
  return torch_from_blob != nullptr;
#else
  return false;
#endif
}

// A tensor in memory that goes back to the pool with it. See Note [Gradient pool].
std::optional<Tensor> pooled(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type,
                             size_t bytes) {
  if (!can_make_tensors_over_memory()) return std::nullopt;
  const gradient_pool::Memory memory = gradient_pool::take(bytes);
  if (memory.data == nullptr) return std::nullopt;
  const auto deleter = [](void* data, void* context) {
    gradient_pool::give_back({data, reinterpret_cast<size_t>(context)});
  };
  std::optional<Tensor> gradient =
      tensor_over(memory.data, sizes, strides, type, deleter, reinterpret_cast<void*>(memory.bytes));
  if (!gradient.has_value()) gradient_pool::give_back(memory);
  return gradient;
}

template <class T>
Tensor filled_scalar(double value, ScalarType type, const Tensor& like) {
  Tensor result = empty({}, type, like);
  *static_cast<T*>(result.data_ptr()) = static_cast<T>(value);
  return result;
}

}  // namespace

std::optional<Tensor> tensor_over(void* data, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                                  ScalarType type, void (*deleter)(void* data, void* context), void* context) {
#if defined(__linux__)
  if (torch_from_blob == nullptr) return std::nullopt;
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error = torch_from_blob(data, static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                               0, to_shim(type), aoti_torch_device_type_cpu(), -1, &handle,
                                               aoti_torch_layout_strided(), nullptr, 0, deleter, context);
  if (error == AOTI_TORCH_SUCCESS) return Tensor(handle);
#endif
  return std::nullopt;
}

Tensor empty_gradient(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type,
                      const Tensor& like) {
  const std::optional<size_t> bytes = bytes_of(sizes, type);
  if (!bytes.has_value()) return empty_strided(sizes, strides, type, like);  // torch's error
  if (std::optional<Tensor> gradient = pooled(sizes, strides, type, *bytes)) return *gradient;
  Tensor gradient = empty_strided(sizes, strides, type, like);
  advise_huge_pages(gradient.data_ptr(), *bytes);
  return gradient;
}

Tensor scalar_tensor(double value, ScalarType type, const Tensor& like) {
  switch (type) {
    case ScalarType::Double:
      return filled_scalar<double>(value, type, like);
    case ScalarType::BFloat16:
      return filled_scalar<c10::BFloat16>(value, type, like);
    case ScalarType::Half:
      return filled_scalar<c10::Half>(value, type, like);
    default:
      return filled_scalar<float>(value, type, like);
  }
}

double scalar_value(const Tensor& tensor) {
  const void* data = tensor.data_ptr();
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return *static_cast<const double*>(data);
    case ScalarType::Float:
      return static_cast<double>(*static_cast<const float*>(data));
    case ScalarType::BFloat16:
      return static_cast<double>(static_cast<float>(*static_cast<const c10::BFloat16*>(data)));
    case ScalarType::Half:
      return static_cast<double>(static_cast<float>(*static_cast<const c10::Half*>(data)));
    default:
      refuse("grad_output must be a floating-point tensor");
  }
}

}  // namespace fused_losses
