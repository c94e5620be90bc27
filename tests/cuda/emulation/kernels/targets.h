// Class indices with their weights, and what a mean over them divides by.
#pragma once

#include "cuda/kernels.h"
#include "random.h"

namespace fused_losses::kernel_checks {

class Targets {
 public:
  // The first position has the last class. Some of the others are ignored.
  Targets(Random& random, DType dtype, IndexType type, int64_t num_positions, int64_t num_classes, bool weighted)
      : dtype_(dtype),
        type_(type),
        num_classes_(num_classes),
        ignore_index_(type == IndexType::Int64 || num_classes == 1 ? -100 : 0),
        weighted_(weighted),
        indices_(format_of(type), num_positions, 1),
        weights_(format_of(accumulation_of(dtype)), num_classes, 1) {
    const bool has_room = type != IndexType::UInt8 || ignore_index_ >= 0;
    for (int64_t i = 0; i < num_positions; ++i) {
      const bool ignored = i % 5 == 3 && has_room;
      indices_.set(i, static_cast<double>(ignored ? ignore_index_ : random.below(num_classes)));
    }
    indices_.set(0, static_cast<double>(num_classes - 1));
    random.fill(weights_, 0.5, 1.5);
  }

  int64_t num_positions() const { return indices_.count(); }
  int64_t at(int64_t position) const { return static_cast<int64_t>(indices_[position]); }
  bool ignored(int64_t position) const { return at(position) == ignore_index_; }
  double weight(int64_t c) const { return weighted_ ? weights_[c] : 1; }
  void set(int64_t position, int64_t index) { indices_.set(position, static_cast<double>(index)); }

  double weight_sum() const {
    double sum = 0;
    for (int64_t c = 0; c < num_classes_; ++c) sum += weight(c);
    return sum;
  }
  double denominator() const {
    double sum = 0;
    for (int64_t i = 0; i < num_positions(); ++i) sum += ignored(i) ? 0 : weight(at(i));
    return sum;
  }

  IndexTarget parameters() const {
    IndexTarget target;
    target.data = indices_.data();
    target.type = type_;
    target.num_classes = num_classes_;
    target.ignore_index = ignore_index_;
    target.class_weight = weighted_ ? weights_.data() : nullptr;
    target.double_weight = dtype_ == DType::Float64;
    return target;
  }

 private:
  DType dtype_;
  IndexType type_;
  int64_t num_classes_;
  int64_t ignore_index_;
  bool weighted_;
  Array indices_;
  Array weights_;
};

// The mean's divisor as the kernels compute it, checked.
class Mean {
 public:
  Mean(const Targets& targets, DType dtype)
      : denominator_(DType::Float64), inverse_(accumulation_of(dtype)), scratch_(Format::Float64, cuda::kMaxBlockSums) {
    cuda::weigh_targets(targets.parameters(), targets.num_positions(), dtype, {denominator(), inverse_.data()},
                        static_cast<double*>(scratch_.data()), nullptr);
    expect_close("denominator", 0, denominator_[0], targets.denominator(), {1e-12, 0});
    expect_close("inverse of the denominator", 0, inverse_[0], 1 / targets.denominator(), {1e-6, 0});
  }

  double* denominator() { return static_cast<double*>(denominator_.data()); }
  const void* inverse() const { return inverse_.data(); }

 private:
  Scalar denominator_;
  Scalar inverse_;
  Array scratch_;
};

// The partial sums that a forward leaves.
class BlockLosses : public Array {
 public:
  BlockLosses() : Array(Format::Float64, cuda::kMaxBlockSums) {}
  double* sums() { return static_cast<double*>(data()); }

  // `count`: what the kernel's entry point returned. Together they are the loss, also once they are reduced.
  void check(int64_t count, double expected, Tolerance tolerance) {
    expect(count >= 1 && count <= this->count(), "number of block losses");
    double total = 0;
    for (int64_t i = 0; i < this->count(); ++i) {
      if (i < count) total += (*this)[i];
      if (i >= count) expect(is_untouched(i), "a block loss beyond those that are reported");
    }
    expect_close("sum of block losses", 0, total, expected, tolerance);
  }
};

}  // namespace fused_losses::kernel_checks
