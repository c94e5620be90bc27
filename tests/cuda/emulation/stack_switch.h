// Two executions take turns on one host thread: each keeps its stack while the other runs.
//
// x86-64 switches in a few nanoseconds; elsewhere ucontext does it, with a system call to save the signal mask.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(FUSED_LOSSES_EMULATION_UCONTEXT)
#define FUSED_LOSSES_EMULATION_UCONTEXT 1
#endif

#ifdef FUSED_LOSSES_EMULATION_UCONTEXT
#include <ucontext.h>
#endif

namespace fused_losses::emulation {

#ifdef FUSED_LOSSES_EMULATION_UCONTEXT

struct Context {
  ucontext_t state;
};

// The first switch to the context enters `entry`, which must not return.
inline void prepare_context(Context& context, void* stack, size_t stack_bytes, void (*entry)()) {
  getcontext(&context.state);
  context.state.uc_stack.ss_sp = stack;
  context.state.uc_stack.ss_size = stack_bytes;
  context.state.uc_link = nullptr;
  makecontext(&context.state, entry, 0);
}

inline void switch_context(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#else

// The stack of a suspended execution ends with the address at which it resumes, its frame pointer, and the red zone.
struct Context {
  void** stack_pointer = nullptr;
};

// The first switch to the context enters `entry`, which must not return.
inline void prepare_context(Context& context, void* stack, size_t stack_bytes, void (*entry)()) {
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + stack_bytes) & ~uintptr_t{15};
  void** const slots = reinterpret_cast<void**>(top) - 3;
  slots[0] = reinterpret_cast<void*>(entry);
  slots[1] = nullptr;  // the frame pointer, and
  slots[2] = nullptr;  // the return address: backtraces end here
  context.stack_pointer = slots;
}

// Every register may change meanwhile, so the compiler saves those that it needs. Inlined: a call would return by
// another way than it came, which a processor predicts wrongly each time. The floating-point modes are common to all.
#ifdef __AVX512F__
#define FUSED_LOSSES_MORE_REGISTERS                                                                                    \
  "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", \
      "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7",
#else
#define FUSED_LOSSES_MORE_REGISTERS
#endif

[[gnu::always_inline]] inline void switch_context(Context& from, Context& to) {
  void*** saved = &from.stack_pointer;
  void** next = to.stack_pointer;
  asm volatile(
      "leaq -128(%%rsp), %%rsp\n\t"  // the compiler may have put data below the stack pointer
      "pushq %%rbp\n\t"
      "leaq 1f(%%rip), %%rax\n\t"
      "pushq %%rax\n\t"
      "movq %%rsp, (%[saved])\n\t"
      "movq %[next], %%rsp\n\t"
      "popq %%rax\n\t"
      "popq %%rbp\n\t"
      "jmp *%%rax\n"
      "1:\n\t"
      "leaq 128(%%rsp), %%rsp"
      : [saved] "+D"(saved), [next] "+S"(next)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2",
        "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15",
        FUSED_LOSSES_MORE_REGISTERS "memory", "cc");
}

#undef FUSED_LOSSES_MORE_REGISTERS

#endif

}  // namespace fused_losses::emulation
