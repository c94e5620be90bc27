#include "transformed_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "../core/blocks.h"
#include "../core/compensated_sum.h"
#include "../core/dtype_dispatch.h"
#include "capability.h"

namespace fused_losses::cpu {
namespace {

constexpr UnitTransform kCopy{1, 0};

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, Free>;

// Positions of one outer index.
struct Segment {
  int64_t first;
  int64_t count;
  Place place;  // of the first
};

class Transformed {
 public:
  Transformed(const CrossEntropyParams& params, const UnitTransform& transform, CrossEntropyKernel* kernel,
              bool contiguous_classes)
      : params_(params),
        transform_(transform),
        kernel_(kernel),
        accumulation_(params.dtype == DType::Float64 ? DType::Float64 : DType::Float32),
        positions_(std::min(params.positions_per_block, params.num_positions)),
        copies_probability_(params.target_kind == TargetKind::Probability && params.probability_dtype != accumulation_),
        by_class_(!contiguous_classes) {
    units_ = new_memory(true);
    gradient_ = new_memory(params.mode != CrossEntropyMode::Loss);
    slopes_ = new_memory(params.mode != CrossEntropyMode::Loss && transform.softcap != 0);
    probability_ = new_memory(copies_probability_);
  }

  bool has_memory() const { return !lacks_memory_; }

  void run(int64_t block) {
    const Range range = range_of_block(block, params_.positions_per_block, params_.num_positions);
    CompensatedSum block_loss;
    for (int64_t first = range.first; first < range.end;) {
      const Place place = place_of(first, params_.inner_size);
      const int64_t count = std::min(range.end - first, params_.inner_size - place.inner);
      block_loss.add(run({first, count, place}));
      first += count;
    }
    if (params_.block_losses != nullptr) params_.block_losses[block] = block_loss.value();
  }

 private:
  Memory new_memory(bool wanted) {
    if (!wanted) return nullptr;
    const auto bytes = static_cast<size_t>(positions_ * params_.num_classes * size_of(accumulation_));
    Memory memory(static_cast<char*>(std::malloc(bytes)));
    lacks_memory_ |= memory == nullptr;
    return memory;
  }

  double run(const Segment& segment) {
    CrossEntropyParams local = params_;
    local.dtype = accumulation_;
    local.num_positions = local.inner_size = local.positions_per_block = segment.count;
    local.logit_scale = transform_.softcap != 0 ? transform_.softcap : std::fabs(transform_.logit_scale);
    local.logits = units_.get();
    local.logits_layout = local.gradient_layout = layout_of(segment);
    local.gradient = gradient_.get();
    local.stream_gradient = false;
    if (params_.target_kind == TargetKind::Probability) {
      set_probability(segment, local);
    } else {
      local.target.data = static_cast<const char*>(params_.target.data) + segment.first * size_of(params_.target.type);
    }
    const int64_t offset = segment.first * size_of(accumulation_);
    for (void** values : {&local.losses, &local.row_max, &local.row_sum, &local.row_others, &local.row_mass}) {
      if (*values != nullptr) *values = static_cast<char*>(*values) + offset;
    }
    if (local.grad_output != nullptr) {
      local.grad_output = static_cast<const char*>(local.grad_output) + offset * local.grad_output_stride;
    }
    double loss = 0;
    local.block_losses = &loss;

    for_each_run(segment, params_.logits_layout, [&](int64_t start, int64_t at, int64_t count) {
      kernels().logit_units(transform_, params_.dtype, element(params_.logits, start, params_.dtype), unit(units_, at),
                            unit(slopes_, at), count);
    });
    kernel_(local, 0, 1);
    if (params_.mode == CrossEntropyMode::Loss) return loss;
    for_each_run(segment, params_.gradient_layout, [&](int64_t start, int64_t at, int64_t count) {
      void* gradient = const_cast<char*>(element(params_.gradient, start, params_.dtype));
      kernels().logit_gradient(transform_, params_.dtype, unit(slopes_, at), unit(gradient_, at), gradient, count);
    });
    return loss;
  }

  void set_probability(const Segment& segment, CrossEntropyParams& local) {
    const DType type = params_.probability_dtype;
    if (!copies_probability_) {
      local.probability_target =
          element(params_.probability_target, params_.probability_layout.offset(segment.place), type);
      return;
    }
    for_each_run(segment, params_.probability_layout, [&](int64_t start, int64_t at, int64_t count) {
      kernels().logit_units(kCopy, type, element(params_.probability_target, start, type), unit(probability_, at),
                            nullptr, count);
    });
    local.probability_dtype = accumulation_;
    local.probability_target = probability_.get();
    local.probability_layout = local.logits_layout;
  }

  // Of a segment's units: classes contiguous, or positions.
  ClassLayout layout_of(const Segment& segment) const {
    ClassLayout layout;
    layout.class_stride = by_class_ ? segment.count : 1;
    layout.inner_stride = by_class_ ? 1 : params_.num_classes;
    layout.outer_stride = segment.count * params_.num_classes;
    return layout;
  }

  // visit(offset in memory, offset among the units, count) for every run that is contiguous in both.
  template <class Visit>
  void for_each_run(const Segment& segment, const ClassLayout& memory, const Visit& visit) const {
    const int64_t start = memory.offset(segment.place);
    const int64_t num_classes = params_.num_classes;
    if (by_class_) {
      for (int64_t c = 0; c < num_classes; ++c) {
        visit(start + c * memory.class_stride, c * segment.count, segment.count);
      }
    } else if (memory.inner_stride == num_classes) {
      visit(start, 0, segment.count * num_classes);
    } else {
      for (int64_t i = 0; i < segment.count; ++i) visit(start + i * memory.inner_stride, i * num_classes, num_classes);
    }
  }

  static const char* element(const void* memory, int64_t offset, DType type) {
    return static_cast<const char*>(memory) + offset * size_of(type);
  }
  char* unit(const Memory& memory, int64_t offset) const {
    return memory == nullptr ? nullptr : memory.get() + offset * size_of(accumulation_);
  }

  const CrossEntropyParams& params_;
  const UnitTransform transform_;
  CrossEntropyKernel* kernel_;
  const DType accumulation_;
  const int64_t positions_;
  const bool copies_probability_;
  const bool by_class_;
  bool lacks_memory_ = false;
  Memory units_;
  Memory slopes_;
  Memory gradient_;
  Memory probability_;
};

}  // namespace

bool transformed_cross_entropy(const CrossEntropyParams& params, const UnitTransform& transform,
                               CrossEntropyKernel* kernel, bool contiguous_classes, int64_t block_begin,
                               int64_t block_end) {
  Transformed transformed(params, transform, kernel, contiguous_classes);
  if (!transformed.has_memory()) return false;
  for (int64_t block = block_begin; block < block_end; ++block) transformed.run(block);
  return true;
}

}  // namespace fused_losses::cpu
