// What a kernel run is compared by: mismatches are counted and printed with the case that they belong to.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "../sanitizers.h"

namespace fused_losses::kernel_checks {

// The case that runs now. A sanitizer that ends the program prints it, too.
inline std::string current_case;
inline int num_mismatches = 0;

// Ends the program where nothing seems to work.
inline void expect(bool ok, const char* what) {
  if (ok) return;
  std::printf("%s: %s\n", current_case.c_str(), what);
  if (++num_mismatches < 20) return;
  std::fflush(stdout);
  std::_Exit(1);
}

struct Tolerance {
  double relative;
  double absolute;
};

inline void expect_close(const char* what, int64_t i, double got, double expected, Tolerance tolerance) {
  if (got == expected || std::fabs(got - expected) <= tolerance.absolute + tolerance.relative * std::fabs(expected)) {
    return;
  }
  char text[160];
  std::snprintf(text, sizeof text, "%s[%lld] is %.9g, not %.9g", what, static_cast<long long>(i), got, expected);
  expect(false, text);
}

}  // namespace fused_losses::kernel_checks
