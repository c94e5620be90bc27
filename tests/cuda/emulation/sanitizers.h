// What AddressSanitizer and ThreadSanitizer must be told about fibers; nothing where they are not compiled in.
#pragma once

#include <cstddef>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUSED_LOSSES_ADDRESS_SANITIZER 1
#endif
#if __has_feature(thread_sanitizer)
#define FUSED_LOSSES_THREAD_SANITIZER 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define FUSED_LOSSES_ADDRESS_SANITIZER 1
#endif
#ifdef __SANITIZE_THREAD__
#define FUSED_LOSSES_THREAD_SANITIZER 1
#endif

#ifdef FUSED_LOSSES_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#endif
#if defined(FUSED_LOSSES_ADDRESS_SANITIZER) || defined(FUSED_LOSSES_THREAD_SANITIZER)
#include <sanitizer/common_interface_defs.h>
#define FUSED_LOSSES_SANITIZER 1
#endif
#ifdef FUSED_LOSSES_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace fused_losses::emulation {

#ifdef FUSED_LOSSES_ADDRESS_SANITIZER
constexpr bool kAddressSanitizer = true;
inline void poison(const void* memory, size_t bytes) { __asan_poison_memory_region(memory, bytes); }
inline void unpoison(const void* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
inline void leave_stack(void** saved, const void* next_stack, size_t next_bytes) {
  __sanitizer_start_switch_fiber(saved, next_stack, next_bytes);
}
inline void enter_stack(void* saved, const void** previous_stack, size_t* previous_bytes) {
  __sanitizer_finish_switch_fiber(saved, previous_stack, previous_bytes);
}
#else
constexpr bool kAddressSanitizer = false;
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
inline void leave_stack(void**, const void*, size_t) {}
inline void enter_stack(void*, const void**, size_t*) {}
#endif

// Called where a sanitizer ends the program.
#ifdef FUSED_LOSSES_SANITIZER
inline void before_death(void (*callback)()) { __sanitizer_set_death_callback(callback); }
#else
inline void before_death(void (*)()) {}
#endif

// Note [Races]
// To ThreadSanitizer every fiber is a thread, and a switch orders nothing. What happened before release(clock) is
// visible after a later acquire(clock); two accesses without such a chain between them are a race, whatever the order
// in which the fibers happened to run. The emulation's own data is no part of that: the host, which alone changes it,
// ignores its own accesses. ThreadSanitizer knows about 8,000 threads: four host threads that each launch blocks of
// 1024 are too many (a host thread keeps twice as many fibers as its largest block has threads).
#ifdef FUSED_LOSSES_THREAD_SANITIZER
constexpr bool kThreadSanitizer = true;
inline void release(void* clock) { __tsan_release(clock); }
inline void acquire(void* clock) { __tsan_acquire(clock); }
inline void* current_identity() { return __tsan_get_current_fiber(); }
inline void* create_identity() { return __tsan_create_fiber(0); }
inline void destroy_identity(void* identity) { __tsan_destroy_fiber(identity); }
// Inlined, as its entry would count for one fiber and its exit for the other.
[[gnu::always_inline]] inline void assume_identity(void* identity) {
  __tsan_switch_to_fiber(identity, __tsan_switch_to_fiber_no_sync);
}
struct IgnoredAccesses {
  IgnoredAccesses() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~IgnoredAccesses() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};
#else
constexpr bool kThreadSanitizer = false;
inline void release(void*) {}
inline void acquire(void*) {}
inline void* current_identity() { return nullptr; }
inline void* create_identity() { return nullptr; }
inline void destroy_identity(void*) {}
inline void assume_identity(void*) {}
struct IgnoredAccesses {
  IgnoredAccesses() {}
};
#endif

}  // namespace fused_losses::emulation
