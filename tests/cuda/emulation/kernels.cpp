// The CUDA kernels, without torch: every entry point of csrc/cuda/kernels.h on memory of exactly the needed size,
// against plain loops of doubles. The sanitizers then see nothing but the kernels.
//
//   kernels ORDER SEED [SECTION [DTYPE]]
//
// SECTION: cross_entropy, cross_entropy_terms, nll_loss, binary_cross_entropy, token_statistics, reductions, refusals
// or all. Prints what is not as it should be, and exits with 1.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels/binary_cross_entropy_cases.h"
#include "kernels/cross_entropy_cases.h"
#include "kernels/nll_loss.h"
#include "kernels/reductions.h"
#include "kernels/refusals.h"
#include "kernels/token_statistics.h"

namespace fused_losses::kernel_checks {
namespace {

void check_reductions(DType dtype) {
  check_weigh_targets(dtype, 8192 + 700, IndexType::Int64, true);
  check_weigh_targets(dtype, 1100, IndexType::UInt8, false);
  check_sums(dtype, 1);
  check_sums(dtype, 1500);
}

struct Section {
  const char* name;
  void (*run)(DType dtype);
};
constexpr Section kSections[] = {
    {"cross_entropy", [](DType dtype) { CrossEntropyCases(dtype).run(); }},
    {"cross_entropy_terms", [](DType dtype) { CrossEntropyTermsCases(dtype).run(); }},
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
