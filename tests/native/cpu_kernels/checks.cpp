// The CPU kernels, without torch, against plain loops of doubles: for a processor that is not this one, under an
// emulator.
//
//   checks SECTION DTYPE
//
// SECTION: one of kSections. Prints what is not as it should be, and exits with 1.
#include <cstdio>
#include <string>

#include "cuda/emulation/kernels/binary_cross_entropy_cases.h"
#include "cuda/emulation/kernels/cross_entropy_cases.h"
#include "cuda/emulation/kernels/nll_loss.h"
#include "cuda/emulation/kernels/token_statistics.h"
#include "entry_points.h"
#include "row_terms.h"
#include "sixteen_bits.h"

namespace fused_losses::kernel_checks {
namespace {

// Where the CPU kernels take another way: tiles of 128 positions, transposed up to 64 classes, batches of 16 rows up to
// 1024 classes.
void check_ends_of_ways(DType dtype) {
  for (const int64_t classes : {63, 64, 65, 1023, 1024, 1025}) {
    for (int kind = 0; kind < kNumKinds; ++kind) {
      CrossEntropyCase test{dtype, 19, classes};
      set_kind(test, kind);
      CrossEntropyCheck(test).run();
    }
  }
  for (const int64_t inner : {127, 128, 129, 300}) {
    for (int kind = 0; kind < kNumKinds; ++kind) {
      CrossEntropyCase test{dtype, 2, 21, inner, false};
      set_kind(test, kind);
      CrossEntropyCheck(test).run();
    }
  }
}

void check_cross_entropy(DType dtype) {
  for (const Ways& each : {Ways{true, false}, Ways{false, true}}) {
    ways = each;
    CrossEntropyCases(dtype).run();
    check_ends_of_ways(dtype);
  }
}

struct Section {
  const char* name;
  void (*run)(DType dtype);
};
constexpr Section kSections[] = {
    {"cross_entropy", check_cross_entropy},        {"row_terms", check_row_terms},
    {"binary_cross_entropy", check_binary_losses}, {"nll_loss", check_nll_losses},
    {"token_statistics", check_token_statistics},  {"sixteen_bits", check_sixteen_bits},
};

}  // namespace
}  // namespace fused_losses::kernel_checks

int main(int num_arguments, char** arguments) {
  using namespace fused_losses;
  using namespace fused_losses::kernel_checks;
  if (num_arguments != 3) return std::fputs("checks SECTION DTYPE\n", stderr), 2;
  bool found = false;
  for (const DType dtype : {DType::Float32, DType::Float64, DType::BFloat16, DType::Float16}) {
    for (const Section& section : kSections) {
      if (std::string(arguments[1]) != section.name || std::string(arguments[2]) != name_of(dtype)) continue;
      section.run(dtype);
      found = true;
    }
  }
  if (!found) return std::fprintf(stderr, "no section %s of %s\n", arguments[1], arguments[2]), 2;
  return num_mismatches == 0 ? 0 : 1;
}
