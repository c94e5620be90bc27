// Parameters and mathematics of the statistics of tokens: log-probability, log-sum-exp, entropy and argmax of each row.
//
// Note [Token statistics]
// A row has x_c = softcap * tanh(logit_scale * l_c / softcap), or logit_scale * l_c without a softcap. With m = max(x),
// z_c = x_c - m, S = sum exp(z_c), T = sum exp(z_c) z_c and p_c = exp(z_c) / S:
//   log_prob    = z_t - log S
//   log_sum_exp = m + log S
//   entropy H   = -sum p_c log p_c = log S - T / S
// Their derivatives are [c = t] - p_c, p_c and -p_c (log p_c + H) = -p_c (z_c - T / S), so that for gradients g, e and
// h of log_prob, log_sum_exp and entropy
//   d/dx_c = p_c (a + b z_c) + g [c = t],  a = e - g + h T / S,  b = -h
//   d/dl_c = d/dx_c * logit_scale * (1 - (x_c / softcap)^2)
// and the terms of the target are g (1 - p_t) = g S' / S with the S' of Note [Confident rows] in cross_entropy.h.
// Source: the derivatives of the definitions; softcap as in Gemma 2 (arXiv:2408.00118), section 2.
#pragma once

#include <cstdint>

#include "class_layout.h"
#include "element_types.h"
#include "index_target.h"

namespace fused_losses {

struct TokenStatisticsParams {
  DType dtype;  // of logits and gradient

  int64_t num_positions;
  int64_t inner_size;
  int64_t num_classes;
  int64_t positions_per_block;

  const void* logits;  // contiguous classes
  ClassLayout logits_layout;
  IndexTarget target;  // [num_positions]

  double logit_scale;
  double softcap;  // 0: none

  // [num_positions] each in the accumulation type: the results, and m, S, S' and T for the backward.
  void* log_prob;
  void* log_sum_exp;
  void* entropy;
  int64_t* argmax;
  void* row_max;  // the logit of m, or its tangent with a softcap
  void* row_sum;
  void* row_others;
  void* row_sum_times_x;

  // Backward, if not null: the gradients of the results, null where there is none.
  void* gradient;
  ClassLayout gradient_layout;
  const void* grad_log_prob;
  const void* grad_log_sum_exp;
  const void* grad_entropy;
};

}  // namespace fused_losses
