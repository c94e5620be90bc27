#include "index_target.h"

#include "../cpu/capability.h"
#include "parallel.h"

namespace fused_losses {
namespace {

constexpr int64_t kPositionsPerBlock = 32768;

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
  check_cpu(*weight);
  if (weight->dim() != 1 || weight->size(0) != num_classes) refuse("weight must have one value per class");
  const ScalarType type = weight->scalar_type();
  if (type != input_type && !(promote && is_float_type(type))) refuse("weight must have the input's type");
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

double total_weight(const IndexTarget& target, const std::vector<TargetScan>& scans) {
  CompensatedSum weight;
  for (const TargetScan& scan : scans) {
    if (scan.first_invalid >= 0) {
      throw std::out_of_range("Target " + std::to_string(read_index(target, scan.first_invalid)) +
                              " is out of bounds.");
    }
    weight.add(scan.weight);
  }
  return weight.value();
}

double check_targets(const IndexTarget& target, int64_t num_positions) {
  const int64_t num_blocks = blocks_of(num_positions, kPositionsPerBlock);
  std::vector<TargetScan> scans(static_cast<size_t>(num_blocks));
  for_each_block(num_blocks, [&](int64_t block_begin, int64_t block_end) {
    for (int64_t block = block_begin; block < block_end; ++block) {
      const int64_t begin = block * kPositionsPerBlock;
      const int64_t end = begin + kPositionsPerBlock < num_positions ? begin + kPositionsPerBlock : num_positions;
      scans[static_cast<size_t>(block)] = cpu::kernels().scan_targets(target, begin, end);
    }
  });
  return total_weight(target, scans);
}

}  // namespace fused_losses
