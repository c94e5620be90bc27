// exp, log, log1p and tanh as the kernels compute them, over an array: for the tests of their accuracy.
// Compiled once per instruction set.
#include "flush_to_zero.h"
#include "kernels.h"
#include "vec_math.h"

namespace fused_losses::cpu {
namespace {

template <class A, class Function>
void map(const A* input, A* output, int64_t count, const Function& function) {
  int64_t i = 0;
  for (; i + kLanes<A> <= count; i += kLanes<A>) store(output + i, function(load(input + i)));
  if (i < count) store_partial(output + i, function(load_partial(input + i, count - i, A(1))), count - i);
}

template <class A>
void map_function(ElementaryFunction function, const A* input, A* output, int64_t count) {
  switch (function) {
    case ElementaryFunction::Exp:
      return map(input, output, count, [](Vec<A> x) { return exp<A>(x); });
    case ElementaryFunction::Log:
      return map(input, output, count, [](Vec<A> x) { return log<A>(x); });
    case ElementaryFunction::Log1p:
      return map(input, output, count, [](Vec<A> x) { return log1p(x); });
    case ElementaryFunction::LogOfComplement:
      return map(input, output, count, [](Vec<A> x) { return log_of_complement<A>(x); });
    case ElementaryFunction::Log1pOfAny:
      return map(input, output, count, [](Vec<A> x) { return log_of_sum<A>(x + A(1), broadcast(A(1)), x); });
    case ElementaryFunction::Tanh:
      return map(input, output, count, [](Vec<A> x) { return tanh<A>(x); });
  }
}

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void elementary_function(ElementaryFunction function, DType dtype, const void* input, void* output, int64_t count) {
  const FlushToZero flush;
  if (dtype == DType::Float64) {
    map_function(function, static_cast<const double*>(input), static_cast<double*>(output), count);
  } else {
    map_function(function, static_cast<const float*>(input), static_cast<float*>(output), count);
  }
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
