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

// Eight sums at once: one would wait for the latency of every addition.
template <class A>
inline double sum_in_double(const A* values, int count) {
  double sums[8] = {};
  int i = 0;
  for (; i + 8 <= count; i += 8) {
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) sums[k] += static_cast<double>(values[i + k]);
  }
  for (int k = 0; i + k < count; ++k) sums[k] += static_cast<double>(values[i + k]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace
}  // namespace fused_losses
