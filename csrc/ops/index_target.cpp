#include "index_target.h"

namespace fused_losses {
namespace {

IndexType to_index_type(ScalarType type) {
  switch (type) {
    case ScalarType::Long:
      return IndexType::Int64;
    case ScalarType::Int:
      return IndexType::Int32;
    case ScalarType::Byte:
      return IndexType::UInt8;
    default:
      refuse("class indices must be int64, int32 or uint8");
  }
}

}  // namespace

std::optional<Tensor> prepare_class_weight(const std::optional<Tensor>& weight, int64_t num_classes,
                                           ScalarType input_type, bool promote) {
  if (!weight.has_value()) return std::nullopt;
  if (weight->dim() != 1 || weight->size(0) != num_classes) refuse("weight must have one value per class");
  const ScalarType type = weight->scalar_type();
  const bool fits_promoted = is_float_type(type) && type != ScalarType::Double;  // torch promotes no further
  if (type != input_type && !(promote && fits_promoted)) refuse("weight must have the input's type");
  return as_contiguous(cast(*weight, accumulation_type(input_type)));
}

IndexTarget to_index_target(const Tensor& target, int64_t num_classes, int64_t ignore_index,
                            const std::optional<Tensor>& class_weight) {
  IndexTarget result;
  result.data = target.data_ptr();
  result.type = to_index_type(target.scalar_type());
  result.num_classes = num_classes;
  result.ignore_index = ignore_index;
  if (class_weight.has_value()) {
    result.class_weight = class_weight->data_ptr();
    result.double_weight = class_weight->scalar_type() == ScalarType::Double;
  }
  return result;
}

}  // namespace fused_losses
