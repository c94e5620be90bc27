// A sum in double that keeps what each addition rounds away (Neumaier 1974), so that float64 losses of long batches are
// as exact as those of short ones. Source: A. Neumaier, Rundungsfehleranalyse einiger Verfahren zur Summation endlicher
// Summen, ZAMM 54 (1974).
#pragma once

namespace fused_losses {
namespace {

class CompensatedSum {
 public:
  void add(double value) {
    const double total = sum_ + value;
    const bool sum_is_larger = (sum_ < 0 ? -sum_ : sum_) >= (value < 0 ? -value : value);
    const double lost = sum_is_larger ? (sum_ - total) + value : (value - total) + sum_;
    sum_ = total;
    compensation_ += lost;
  }

  // Infinite and NaN totals have no compensation that means anything.
  double value() const {
    const bool finite = sum_ - sum_ == 0;
    return finite ? sum_ + compensation_ : sum_;
  }

 private:
  double sum_ = 0;
  double compensation_ = 0;
};

}  // namespace
}  // namespace fused_losses
