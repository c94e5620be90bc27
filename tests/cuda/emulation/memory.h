// Loads and stores with a cache hint, which need natural alignment; atomic operations; shared arrays; assertions.
#pragma once

#include <cstdint>
#include <type_traits>

#include "shared_memory.h"
#include "synchronization.h"

namespace fused_losses::emulation {

inline void device_assert(bool ok, const char* text, const char* /*file*/, int /*line*/) {
  if (!ok) fail(Call::DeviceAssert, text, {});
}

// Every execution of one declaration, in whatever thread of the block, gives the same memory.
template <class T>
T* shared_array(size_t count, std::source_location where = std::source_location::current()) {
  static_assert(std::is_trivially_copyable_v<T>);
  return static_cast<T*>(
      ask({.call = Call::SharedArray, .where = where, .bytes = count * sizeof(T), .alignment = alignof(T)}).memory);
}

// All declarations in a block name the same memory, of as many bytes as the launch said, aligned to 16.
inline void* dynamic_shared_array() {
  return ask({.call = Call::DynamicSharedArray, .where = std::source_location::current()}).memory;
}

template <class T>
void check_alignment(const T* address, std::source_location where) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0) fail(Call::Misuse, "misaligned address", where);
}

// Cache hints make the access one to global memory (PTX ISA, ld and st: .cs and .cg are of .global), which a GPU
// refuses elsewhere.
inline void check_global(const void* address, std::source_location where) {
  if (SharedMemory::holds(address)) fail(Call::Misuse, "a cache hint for shared memory", where);
}

template <class T>
T load(const T* address, std::source_location where) {
  check_alignment(address, where);
  check_global(address, where);
  return *address;
}

template <class T>
void store(T* address, const T& value, std::source_location where) {
  check_alignment(address, where);
  check_global(address, where);
  *address = value;
}

}  // namespace fused_losses::emulation

template <class T>
T __ldg(const T* address, std::source_location where = std::source_location::current()) {
  return fused_losses::emulation::load(address, where);
}

template <class T>
T __ldcs(const T* address, std::source_location where = std::source_location::current()) {
  return fused_losses::emulation::load(address, where);
}

template <class T>
T __ldcg(const T* address, std::source_location where = std::source_location::current()) {
  return fused_losses::emulation::load(address, where);
}

template <class T>
void __stcs(T* address, std::type_identity_t<T> value, std::source_location where = std::source_location::current()) {
  fused_losses::emulation::store(address, value, where);
}

template <class T>
void __stcg(T* address, std::type_identity_t<T> value, std::source_location where = std::source_location::current()) {
  fused_losses::emulation::store(address, value, where);
}

// Atomic, but ordering nothing, as on the GPU.
inline int atomicAdd(int* address, int value) { return __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
inline int atomicExch(int* address, int value) { return __atomic_exchange_n(address, value, __ATOMIC_RELAXED); }
inline unsigned atomicExch(unsigned* address, unsigned value) {
  return __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
}

// Counts up to `last`, then starts again at 0.
inline unsigned atomicInc(unsigned* address, unsigned last) {
  unsigned old = __atomic_load_n(address, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(address, &old, old >= last ? 0 : old + 1, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
  }
  return old;
}
