// The CUDA kernels, without torch: every entry point of csrc/cuda/kernels.h on memory of exactly the needed size,
// against plain loops of doubles. The sanitizers then see nothing but the kernels.
//
//   kernels ORDER SEED [SECTION [DTYPE]]
//
// SECTION: cross_entropy, nll_loss, binary_cross_entropy, token_statistics, reductions, refusals or all. Prints what is
// not as it should be, and exits with 1.
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels/binary_cross_entropy.h"
#include "kernels/cross_entropy_cases.h"
#include "kernels/nll_loss.h"
#include "kernels/reductions.h"
#include "kernels/refusals.h"
#include "kernels/token_statistics.h"

namespace fused_losses::kernel_checks {
namespace {

void check_nll_losses(DType dtype) {
  check_nll_loss({dtype, 515, 3, 1, IndexType::Int64, false, 0, 0});  // round again
  check_nll_loss({dtype, 9, 10, 1, IndexType::UInt8, true, 2, 1});
  check_nll_loss({dtype, 3, 5, 7, IndexType::Int32, true, 0, 3});
  check_nll_loss({dtype, 2, 1, 12, IndexType::Int64, true, 3, 0});
}

void check_binary_losses(DType dtype) {
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

void check_reductions(DType dtype) {
  check_weigh_targets(dtype, 8192 + 700, IndexType::Int64, true);
  check_weigh_targets(dtype, 1100, IndexType::UInt8, false);
  check_sums(dtype, 1);
  check_sums(dtype, 1500);
  const int64_t packet = packet_elements(dtype);
  for (const int64_t count : {int64_t{0}, int64_t{1}, packet - 1, packet, 2 * 256 * packet + 3}) {
    for (const int64_t first : {int64_t{0}, int64_t{1}}) check_scale_gradient(dtype, count, first);
  }
}

struct Section {
  const char* name;
  void (*run)(DType dtype);
};
constexpr Section kSections[] = {
    {"cross_entropy", [](DType dtype) { CrossEntropyCases(dtype).run(); }},
    {"binary_cross_entropy", check_binary_losses},
    {"nll_loss", check_nll_losses},
    {"token_statistics", check_token_statistics},
    {"reductions", check_reductions},
    {"refusals", check_refusals},
};

void run(const std::string& section, const std::string& dtype_name) {
  for (const DType dtype : {DType::Float32, DType::Float64, DType::BFloat16, DType::Float16}) {
    if (!dtype_name.empty() && dtype_name != name_of(dtype)) continue;
    for (const Section& candidate : kSections) {
      if (section == "all" || section == candidate.name) candidate.run(dtype);
    }
  }
}

}  // namespace
}  // namespace fused_losses::kernel_checks

int main(int num_arguments, char** arguments) {
  using namespace fused_losses;
  if (num_arguments < 3) return std::fputs("kernels ORDER SEED [SECTION [DTYPE]]\n", stderr), 2;
  emulation::set_order(emulation::order_named(arguments[1]), std::strtoull(arguments[2], nullptr, 10));
  emulation::before_death([] { std::fprintf(stderr, "%s\n", kernel_checks::current_case.c_str()); });
  try {
    kernel_checks::run(num_arguments > 3 ? arguments[3] : "all", num_arguments > 4 ? arguments[4] : "");
  } catch (const std::runtime_error& error) {
    kernel_checks::expect(false, error.what());
  }
  return kernel_checks::num_mismatches == 0 ? 0 : 1;
}
