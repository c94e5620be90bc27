// Class-index targets of an operator: their types and weights.
#pragma once

#include <optional>

#include "../core/index_target.h"
#include "tensors.h"

namespace fused_losses {

inline bool is_index_type(ScalarType type) {
  return type == ScalarType::Long || type == ScalarType::Int || type == ScalarType::Byte;
}

// The class weights in the accumulation type, or nothing. `promote`: see docs/routing.md, autocast.
std::optional<Tensor> prepare_class_weight(const std::optional<Tensor>& weight, int64_t num_classes,
                                           ScalarType input_type, bool promote);

// `target` contiguous; `class_weight` from prepare_class_weight. Both must outlive the result.
IndexTarget to_index_target(const Tensor& target, int64_t num_classes, int64_t ignore_index,
                            const std::optional<Tensor>& class_weight);

}  // namespace fused_losses
