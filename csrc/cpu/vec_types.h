// One SIMD register of the accumulation type, written with the vector extensions of GCC and Clang, so that one source
// serves every instruction set; vec_convert.h holds the few operations that the extensions cannot express.
#pragma once

#include <cstdint>
#include <cstring>

#include "../core/element_types.h"

#if defined(__AVX512F__)
#define FUSED_LOSSES_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define FUSED_LOSSES_VECTOR_BYTES 32
#else
#define FUSED_LOSSES_VECTOR_BYTES 16
#endif

// For the functions that hold the innermost loops: whatever they call becomes part of them. Left to itself the compiler
// calls the longer lambdas, and a call spills every register.
#define FUSED_LOSSES_FLATTEN __attribute__((flatten))

// Note [No shared symbols]
// Kernel sources are compiled once per instruction set and linked into one library. A function with external linkage
// that two of those objects define would be merged by the linker, and the surviving copy may hold instructions that
// the processor lacks. Everything a kernel file defines or includes therefore has internal linkage, and kernels use no
// template of the standard library. tests/native/test_symbols.py checks the objects.
namespace fused_losses::cpu {
namespace {

constexpr int kVectorBytes = FUSED_LOSSES_VECTOR_BYTES;

template <class A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <class T, int kCount>
struct VectorOf {
  typedef T type __attribute__((vector_size(kCount * sizeof(T))));
};

template <class A>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
  using unsigned_type = uint32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
  using unsigned_type = uint64_t;
};
template <class A>
using Integer = typename IntegerOf<A>::type;

// A register of A, and the integer register of the same lanes (comparisons yield it: -1 for true).
template <class A>
using Vec = typename VectorOf<A, kLanes<A>>::type;
template <class A>
using IntVec = typename VectorOf<Integer<A>, kLanes<A>>::type;
template <class A>
using UnsignedVec = typename VectorOf<typename IntegerOf<A>::unsigned_type, kLanes<A>>::type;

template <class A>
struct Infinity;
template <>
struct Infinity<float> {
  static constexpr float value = __builtin_inff();
};
template <>
struct Infinity<double> {
  static constexpr double value = __builtin_inf();
};
template <class A>
constexpr A kInfinity = Infinity<A>::value;

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Without arithmetic on the value: 0 + x has not the bits of every x.
template <class A>
inline Vec<A> broadcast(A value) {
  return bit_cast<Vec<A>>(IntVec<A>{} + bit_cast<Integer<A>>(value));
}

template <class A>
inline Vec<A> load_register(const A* source) {
  Vec<A> value;
  std::memcpy(&value, source, sizeof(value));
  return value;
}

template <class A>
inline void store_register(A* destination, Vec<A> value) {
  std::memcpy(destination, &value, sizeof(value));
}

using HalfBits = typename VectorOf<uint16_t, kLanes<float>>::type;
using WordBits = typename VectorOf<uint32_t, kLanes<float>>::type;

inline Vec<float> select(IntVec<float> mask, Vec<float> a, Vec<float> b) { return mask ? a : b; }
inline Vec<double> select(IntVec<double> mask, Vec<double> a, Vec<double> b) { return mask ? a : b; }

}  // namespace
}  // namespace fused_losses::cpu
