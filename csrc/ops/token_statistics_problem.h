// One call of the statistics of tokens on any device: checks, layout, and the parameters that its kernels take. See
// core/token_statistics.h for the mathematics.
#pragma once

#include <optional>
#include <vector>

#include "../core/token_statistics.h"
#include "tensors.h"

namespace fused_losses {

struct TokenStatisticsOptions {
  double logit_scale;
  double softcap;  // 0: none
  int64_t ignore_index;
};

class TokenStatisticsProblem {
 public:
  // The targets themselves are not looked at.
  TokenStatisticsProblem(const Tensor& logits, const Tensor& target, const TokenStatisticsOptions& options);

  TokenStatisticsProblem(const TokenStatisticsProblem&) = delete;
  TokenStatisticsProblem& operator=(const TokenStatisticsProblem&) = delete;

  TokenStatisticsParams params{};

  const Tensor& logits() const { return logits_; }
  ScalarType accumulation() const { return accumulation_type(logits_.scalar_type()); }

  Tensor new_result(ScalarType type) const { return empty(position_sizes_, type, logits_); }
  Tensor new_saved() const;
  void set_saved(const Tensor& saved);

  // In the accumulation type, contiguous; absent ones are 0.
  const void* gradient_of_result(const std::optional<Tensor>& gradient);

  // A contiguous gradient of the logits' sizes, whose memory the caller sees to.
  std::vector<int64_t> gradient_sizes() const { return to_vector(logits_.sizes()); }
  void set_gradient(const Tensor& gradient);

 private:
  void set_layout(const std::vector<int64_t>& sizes);

  Tensor logits_;
  Tensor target_;
  std::optional<Tensor> saved_;
  std::vector<int64_t> position_sizes_;
  std::vector<Tensor> gradients_;
};

}  // namespace fused_losses
