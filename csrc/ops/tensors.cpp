#include "tensors.h"

#include <algorithm>
#include <utility>

#if defined(__linux__)
// Torch has it from 2.13 on and this extension must load in 2.10, where it is null.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();
#endif

namespace fused_losses {

namespace {

// With what torch says of it, such as how much memory it could not get.
[[noreturn]] void raise_torchs_error() {
#if defined(__linux__)
  if (torch_exception_get_what_without_backtrace != nullptr) {
    throw std::runtime_error(torch_exception_get_what_without_backtrace());
  }
#endif
  throw std::runtime_error("fused_losses: torch could not make a tensor, as when there is not enough memory");
}

struct Device {
  int32_t type;
  int32_t index;
};

Device device_of(const Tensor& tensor) {
  Device device{};
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device.type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device.index));
  return device;
}

// From the beginning of the storage to behind the last element.
int64_t bytes_reached(const Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  const auto sizes = tensor.sizes();
  const auto strides = tensor.strides();
  int64_t last = tensor.storage_offset();
  for (size_t dim = 0; dim < sizes.size(); ++dim) last += (sizes[dim] - 1) * strides[dim];
  return (last + 1) * static_cast<int64_t>(tensor.element_size());
}

// Whether the same element lies at the same place.
bool have_equal_strides(const std::vector<int64_t>& sizes, const std::vector<int64_t>& a,
                        const std::vector<int64_t>& b) {
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1 && a[dim] != b[dim]) return false;
  }
  return true;
}

// Every element once, no gaps: memory can be swept as if it had one axis.
bool is_dense(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  const std::vector<size_t> order = storage_order(strides);
  int64_t expected = 1;
  for (size_t i = order.size(); i-- > 0;) {
    if (sizes[order[i]] == 1) continue;
    if (strides[order[i]] != expected) return false;
    expected *= sizes[order[i]];
  }
  return true;
}

// The axes in the order of at::infer_dense_strides (aten/src/ATen/ExpandUtils.cpp): by stride, and of two of one stride
// the larger is the slower. A stride of 0 says nothing: such an axis stays where it is beside its neighbours.
std::vector<size_t> fastest_first(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  const auto is_slower = [&](size_t a, size_t b) -> std::optional<bool> {
    if (strides[a] == 0 || strides[b] == 0) return std::nullopt;
    if (strides[a] != strides[b]) return strides[a] > strides[b];
    return sizes[a] > sizes[b] ? std::optional(true) : std::nullopt;
  };
  std::vector<size_t> order(sizes.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = order.size() - 1 - i;
  for (size_t i = 1; i < order.size(); ++i) {
    size_t moved = i;
    for (size_t before = i; before-- > 0;) {
      const std::optional<bool> swaps = is_slower(order[before], order[moved]);
      if (!swaps.has_value()) continue;
      if (!*swaps) break;
      std::swap(order[before], order[moved]);
      moved = before;
    }
  }
  return order;
}

}  // namespace

void check_tensor(const Tensor& tensor, const Tensor& reference) {
  const Device device = device_of(tensor);
  const Device expected = device_of(reference);
  if (device.type != expected.type || device.index != expected.index) refuse("all tensors must be on one device");
  int64_t storage_bytes = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &storage_bytes));
  if (storage_bytes < bytes_reached(tensor)) refuse("the storage of a tensor was made too small for it");
}

void check_grad_output(const Tensor& grad_output, const Tensor& reference, Reduction reduction, int64_t num_losses) {
  check_tensor(grad_output, reference);
  const int64_t expected = reduction == Reduction::None ? num_losses : 1;
  if (!is_float_type(grad_output.scalar_type()) || grad_output.numel() != expected) {
    refuse("grad_output does not fit the loss");
  }
}

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t dim = sizes.size(); dim-- > 0;) {
    strides[dim] = stride;
    stride *= sizes[dim] > 0 ? sizes[dim] : 1;
  }
  return strides;
}

bool overlaps(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (size_t dim = 0; dim < sizes.size(); ++dim) {
    if (sizes[dim] > 1) dims.emplace_back(strides[dim], sizes[dim]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;  // the last element of the dimensions so far
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return true;
    reach += stride * (size - 1);
  }
  return false;
}

std::vector<size_t> storage_order(const std::vector<int64_t>& strides) {
  std::vector<size_t> order(strides.size());
  for (size_t dim = 0; dim < order.size(); ++dim) order[dim] = dim;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[a] > strides[b]; });
  return order;
}

std::vector<int64_t> dense_strides(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  if (is_dense(sizes, strides)) return strides;
  const std::vector<size_t> order = fastest_first(sizes, strides);
  std::vector<int64_t> dense(sizes.size());
  int64_t stride = 1;
  for (const size_t dim : order) {
    dense[dim] = stride;
    stride *= sizes[dim];
  }
  return dense;
}

std::optional<size_t> bytes_of(const std::vector<int64_t>& sizes, ScalarType type) {
  size_t bytes = element_size(type);
  for (const int64_t size : sizes) {
    if (size < 0 || __builtin_mul_overflow(bytes, static_cast<size_t>(size), &bytes)) return std::nullopt;
  }
  return bytes;
}

Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type,
                     const Tensor& like) {
  const Device device = device_of(like);
  AtenTensorHandle handle = nullptr;
  const AOTITorchError error =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), to_shim(type),
                               device.type, device.index, &handle);
  if (error != AOTI_TORCH_SUCCESS) raise_torchs_error();
  return Tensor(handle);
}

Tensor empty(const std::vector<int64_t>& sizes, ScalarType type, const Tensor& like) {
  return empty_strided(sizes, contiguous_strides(sizes), type, like);
}

Tensor at_strides(const Tensor& tensor, const std::vector<int64_t>& strides) {
  const std::vector<int64_t> sizes = to_vector(tensor.sizes());
  if (have_equal_strides(sizes, to_vector(tensor.strides()), strides)) return tensor;
  Tensor copy = empty_strided(sizes, strides, tensor.scalar_type(), tensor);
  torch::stable::copy_(copy, tensor);
  return copy;
}

Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : at_strides(tensor, contiguous_strides(to_vector(tensor.sizes())));
}

}  // namespace fused_losses
