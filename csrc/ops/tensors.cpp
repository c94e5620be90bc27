#include "tensors.h"

#include <algorithm>
#include <utility>

namespace fused_losses {

namespace {

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

}  // namespace

void check_tensor(const Tensor& tensor, const Tensor& reference) {
  const Device device = device_of(tensor);
  const Device expected = device_of(reference);
  if (device.type != expected.type || device.index != expected.index) refuse("all tensors must be on one device");
  int64_t storage_bytes = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &storage_bytes));
  if (storage_bytes < bytes_reached(tensor)) refuse("the storage of a tensor was made too small for it");
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
  const std::vector<size_t> order = storage_order(strides);
  std::vector<int64_t> dense(sizes.size());
  int64_t stride = 1;
  for (size_t i = order.size(); i-- > 0;) {
    dense[order[i]] = stride;
    stride *= sizes[order[i]];
  }
  return dense;
}

Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type,
                     const Tensor& like) {
  const Device device = device_of(like);
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), to_shim(type), device.type, device.index,
                                                         &handle));
  return Tensor(handle);
}

Tensor empty(const std::vector<int64_t>& sizes, ScalarType type, const Tensor& like) {
  return empty_strided(sizes, contiguous_strides(sizes), type, like);
}

}  // namespace fused_losses
