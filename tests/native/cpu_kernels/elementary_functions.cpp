// The kernels' exp, log, log1p and tanh as a filter: numbers in, results out, both as they lie in memory.
//
//   elementary_functions FUNCTION float32|float64
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "cpu/capability.h"

int main(int num_arguments, char** arguments) {
  using namespace fused_losses;
  if (num_arguments != 3) return std::fputs("elementary_functions FUNCTION float32|float64\n", stderr), 2;
  const auto function = static_cast<cpu::ElementaryFunction>(std::atoi(arguments[1]));
  const bool is_double = std::string(arguments[2]) == "float64";
  const size_t bytes = is_double ? sizeof(double) : sizeof(float);
  std::vector<char> points(size_t{1} << 24);
  points.resize(std::fread(points.data(), 1, points.size(), stdin));
  std::vector<char> results(points.size());
  cpu::kernels().elementary_function(function, is_double ? DType::Float64 : DType::Float32, points.data(),
                                     results.data(), static_cast<int64_t>(points.size() / bytes));
  return std::fwrite(results.data(), 1, results.size(), stdout) == results.size() ? 0 : 1;
}
