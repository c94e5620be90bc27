// Subnormal results become 0 while a kernel runs.
//
// Note [Subnormal numbers]
// A product or a quotient that lands among the subnormal numbers costs many x86 processors a microcode assist of more
// than a hundred cycles a register: a third of the logits at -100, as a mask leaves them, made a loss several times as
// slow. exp gives 0 there by itself; the processor's own flag does it for what is formed of exponentials. What is read
// is not flushed: the logarithm of a subnormal probability must stay what it is. aarch64 has no flag for results alone,
// and its cores compute with subnormal numbers at full speed.
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace fused_losses::cpu {
namespace {

// As long as this lives, on this thread.
class FlushToZero {
 public:
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;
#if defined(__SSE2__)
  FlushToZero() : control_(_mm_getcsr()) { _mm_setcsr(control_ | _MM_FLUSH_ZERO_ON); }
  ~FlushToZero() { _mm_setcsr(control_); }

 private:
  unsigned control_;
#else
  FlushToZero() {}
  ~FlushToZero() {}
#endif
};

}  // namespace
}  // namespace fused_losses::cpu
