// The sizes, alignments and broadcasts that reach every kernel of the elementwise losses.
#pragma once

#include <initializer_list>
#include <utility>

#include "binary_cross_entropy.h"

namespace fused_losses::kernel_checks {

inline void check_binary_losses(DType dtype) {
  const int64_t packet = packet_elements(dtype);
  const bool is_16_bit = packet == 8;
  for (const BinaryLoss loss : {BinaryLoss::Probability, BinaryLoss::Logit, BinaryLoss::Focal}) {
    for (const int64_t elements : {int64_t{1}, packet - 1, packet, packet + 1, 2 * 256 * packet + 5}) {
      BinaryCheck({dtype, dtype, loss, elements}).run();
      if (is_16_bit) BinaryCheck({dtype, DType::Float32, loss, elements}).run();
    }
    for (int64_t past = 0; past < 8; ++past) {
      BinaryCase test{dtype, is_16_bit && past % 2 == 0 ? DType::Float32 : dtype, loss, 3 * packet + 2};
      test.input_past_alignment = past;
      test.other_past_alignment = past % 3;
      BinaryCheck(test).run();
    }
    if (loss == BinaryLoss::Focal) continue;  // it takes no weights
    // A column, a row, one value, no broadcast, and as many axes as there can be.
    const Broadcast weights[] = {{{5, 7}, {1, 0}},
                                 {{3, 5, 7}, {0, 2, 0}},
                                 {{70}, {0}},
                                 {{41}, {1}},
                                 {{2, 2, 3, 1, 2, 2, 2, 2}, {0, 1, 0, 9, 2, 0, 4, 0}}};
    for (const Broadcast& weight : weights) {
      BinaryCase test{dtype, dtype, loss, weight.num_elements(), 0, 1, weight, dtype};
      if (loss == BinaryLoss::Logit) test.pos_weight = {{weight.num_elements()}, {1}};
      BinaryCheck(test).run();
      if (loss == BinaryLoss::Logit) test.pos_weight = std::exchange(test.weight, {});
      if (is_16_bit) test.target_dtype = test.weight_dtype = DType::Float32;
      BinaryCheck(test).run();
    }
  }
}

}  // namespace fused_losses::kernel_checks
