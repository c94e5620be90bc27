// Parameters of softmax cross-entropy and its mathematics, shared by every backend.
//
// Note [Target mass]
// Index targets, label smoothing and probability targets are one formula. A row has
//   * a dense mass q_c: label_smoothing / C * class_weight_c with smoothing, the (smoothed, weighted) probability with
//     probability targets, 0 otherwise; Q = sum_c q_c;
//   * a point mass y at the target class t: (1 - label_smoothing) * class_weight_t with index targets, 0 otherwise.
// With m = max(x), S = sum_c exp(x_c - m), p_c = exp(x_c - m) / S:
//   loss   = y * (log S - (x_t - m)) + Q * log S - sum_c q_c (x_c - m)
//   d/dx_c = (Q + y) p_c - q_c - y [c = t]
// Source: Szegedy et al., Rethinking the Inception Architecture (arXiv:1512.00567), section 7, with class weights as
// torch.nn.CrossEntropyLoss documents them.
//
// Note [Confident rows]
// Where the target is the largest logit by far, S is 1 and a little, and the loss and the derivative at the target are
// that little: in float32 it is gone from a margin of 17 on. So S' = S - exp(x_t - m), the sum over the other classes,
// is a statistic of its own:
//   log S = log1p S' where x_t = m, and p_t - 1 = -S' / S always.
// Where x_t < m, another class adds 1 to S', and the difference has it as exactly as a sum would.
//
// Note [Terms of a row]
// The x above are the logits l times logit_scale, or softcap * tanh(logit_scale * l / softcap). A row may have two more
// terms, of its log-sum-exp L = m + log S (the z-loss) and of the probability p_t of its target (the focal loss, which
// has neither smoothing nor probability targets):
//   loss   = y (1 - p_t)^focal_gamma * -log p_t + Q log S - sum_c q_c (x_c - m) + lse_square_scale * L^2
//   d/dx_c = (Q + y' + e) p_c - q_c - y' [c = t],  e = 2 lse_square_scale L,
//   y'     = y (1 - p_t)^focal_gamma (1 + focal_gamma * p_t * -log p_t / (1 - p_t))
// with 1 - p_t = S' / S; where that is 0, the fraction behind p_t is 1. A backward finds all of it in the statistics.
// Source: the derivatives of the definitions; Chowdhery et al., PaLM (arXiv:2204.02311), section 5, for the z-loss; Lin
// et al., Focal Loss for Dense Object Detection (arXiv:1708.02002), section 3.
#pragma once

#include <cstdint>

#include "class_layout.h"
#include "element_types.h"
#include "index_target.h"

namespace fused_losses {

enum class CrossEntropyMode : int32_t {
  Loss,             // losses and, if asked for, statistics
  LossAndGradient,  // losses and the gradient for expected_grad_output
  Backward,         // the gradient from statistics and grad_output
};

enum class TargetKind : int32_t { Index, SmoothedIndex, Probability };

struct CrossEntropyParams {
  DType dtype;              // of logits and gradient
  DType probability_dtype;  // of probability targets
  TargetKind target_kind;
  CrossEntropyMode mode;

  int64_t num_positions;  // outer_size * inner_size
  int64_t inner_size;
  int64_t num_classes;
  int64_t positions_per_block;

  const void* logits;
  ClassLayout logits_layout;
  void* gradient;  // in the Backward it may be the logits themselves
  ClassLayout gradient_layout;
  bool stream_gradient;  // it is larger than a cache, and not the logits

  IndexTarget target;  // [num_positions]; its class weights also serve probability targets
  const void* probability_target;
  ClassLayout probability_layout;
  double label_smoothing;
  double class_weight_sum;  // of all classes; num_classes without weights

  // See Note [Terms of a row]. CPU kernels other than cross_entropy_rows with index targets get a positive logit_scale
  // and no softcap: cpu/transformed_cross_entropy.h does the rest around them.
  double logit_scale = 1;
  double softcap = 0;  // none
  double lse_square_scale = 0;
  double focal_gamma = 0;

  double gradient_scale;  // 1 / denominator with a mean, else 1
  // LossAndGradient: what the gradient is multiplied by; with a grad_output what `gradient`, there already, was
  // prepared for.
  double expected_grad_output = 1;
  const void* grad_output;  // Backward: accumulation type; [num_positions] with stride 1, or one value with stride 0
  int64_t grad_output_stride;

  // Where the host does not know class_weight_sum and gradient_scale these point to them; else null.
  const double* device_class_weight_sum;
  const void* device_gradient_scale;  // accumulation type

  void* losses;          // [num_positions] in the accumulation type, or null
  double* block_losses;  // [num_blocks] sums of the losses, or null

  // Statistics, [num_positions] each in the accumulation type, or null: m, S and Q of Note [Target mass], S' of Note
  // [Confident rows]. Where a target is ignored they are 0 if the kernel did not read the logits. The backward may be
  // another kernel, of other strides: copies of the logits are what transforms and saved-tensor hooks hand it.
  void* row_max;  // of what the kernel takes for logits: the units of a kernel that transforms them
  void* row_sum;
  void* row_others;  // index targets only
  void* row_mass;    // probability targets only
};

}  // namespace fused_losses
