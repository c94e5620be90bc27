// One SIMD register of the accumulation type: load with widening, store with rounding, reductions, masks.
// Written with the vector extensions of GCC and Clang, so that one source serves every instruction set; vec_convert.h
// holds the few operations that the extensions cannot express.
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

template <class A>
inline Vec<A> broadcast(A value) {
  return Vec<A>{} + value;
}

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
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

#include "vec_convert.h"

namespace fused_losses::cpu {
namespace {

inline Vec<float> load(const float* source) { return load_register(source); }
inline Vec<double> load(const double* source) { return load_register(source); }
inline void store(float* destination, Vec<float> value) { store_register(destination, value); }
inline void store(double* destination, Vec<double> value) { store_register(destination, value); }

// Note [Streaming stores]
// An ordinary store reads the line that it writes to; a streaming one writes whole lines to memory and leaves nothing
// in the caches, which is right for a gradient that no cache would hold until it is read. The destination is aligned to
// what one register writes. Whoever streams calls end_streaming() before another thread may read.
template <class T>
constexpr int64_t kStoredBytes = kLanes<Accumulation<T>> * static_cast<int64_t>(sizeof(T));

template <class T>
inline int64_t elements_to_alignment(const T* address) {
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(address) % kStoredBytes<T>);
  return misaligned == 0 ? 0 : (kStoredBytes<T> - misaligned) / static_cast<int64_t>(sizeof(T));
}

template <class T>
inline void stream(T* destination, Vec<Accumulation<T>> value) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 2) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(destination), bit_cast<__m256i>(to_bits(value, T{})));
  } else {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(destination), bit_cast<__m512i>(value));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 2) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(destination), bit_cast<__m128i>(to_bits(value, T{})));
  } else {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(destination), bit_cast<__m256i>(value));
  }
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 2) {
    store(destination, value);  // eight bytes: no instruction for so few
  } else {
    _mm_stream_si128(reinterpret_cast<__m128i*>(destination), bit_cast<__m128i>(value));
  }
#else
  store(destination, value);
#endif
}

inline void end_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// The first `count` lanes (0 < count < kLanes) from memory, the others `fill`; nothing beyond them is touched.
#if defined(__AVX512F__)
template <class T>
inline Vec<Accumulation<T>> load_partial(const T* source, int64_t count, Accumulation<T> fill) {
  using A = Accumulation<T>;
  const uint32_t lanes = (1u << count) - 1;
  if constexpr (kSameType<T, float>) {
    return _mm512_mask_loadu_ps(broadcast(fill), static_cast<__mmask16>(lanes), source);
  } else if constexpr (kSameType<T, double>) {
    return _mm512_mask_loadu_pd(broadcast(fill), static_cast<__mmask8>(lanes), source);
  } else {
    const __m256i bits = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(lanes), source);
    return _mm512_mask_blend_ps(static_cast<__mmask16>(lanes), broadcast<A>(fill),
                                from_bits(bit_cast<HalfBits>(bits), T{}));
  }
}

template <class T>
inline void store_partial(T* destination, Vec<Accumulation<T>> value, int64_t count) {
  const uint32_t lanes = (1u << count) - 1;
  if constexpr (kSameType<T, float>) {
    _mm512_mask_storeu_ps(destination, static_cast<__mmask16>(lanes), value);
  } else if constexpr (kSameType<T, double>) {
    _mm512_mask_storeu_pd(destination, static_cast<__mmask8>(lanes), value);
  } else {
    _mm256_mask_storeu_epi16(destination, static_cast<__mmask16>(lanes), bit_cast<__m256i>(to_bits(value, T{})));
  }
}
#else
template <class T>
inline Vec<Accumulation<T>> load_partial(const T* source, int64_t count, Accumulation<T> fill) {
  using A = Accumulation<T>;
  T staged[kLanes<A>] = {};
  for (int64_t lane = 0; lane < count; ++lane) staged[lane] = source[lane];
  Vec<A> value = load(staged);
  for (int lane = 0; lane < kLanes<A>; ++lane) value[lane] = lane < count ? value[lane] : fill;
  return value;
}

template <class T>
inline void store_partial(T* destination, Vec<Accumulation<T>> value, int64_t count) {
  T staged[kLanes<Accumulation<T>>];
  store(staged, value);
  for (int64_t lane = 0; lane < count; ++lane) destination[lane] = staged[lane];
}
#endif

template <class T>
inline Accumulation<T> load_scalar(const T* source) {
  if constexpr (sizeof(T) == 2) {
    return load_partial(source, 1, 0.0f)[0];
  } else {
    return *source;
  }
}

template <class T>
inline void store_scalar(T* destination, Accumulation<T> value) {
  if constexpr (sizeof(T) == 2) {
    store_partial(destination, broadcast(value), 1);
  } else {
    *destination = value;
  }
}

// Sums and maxima over the lanes in a fixed order: pairs at half the width, then at a quarter, and so on.
template <class A>
inline A sum_lanes(Vec<A> value) {
  A lanes[kLanes<A>];
  store_register(lanes, value);
  for (int half = kLanes<A> / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

template <class A>
inline A max_lanes(Vec<A> value) {
  A lanes[kLanes<A>];
  store_register(lanes, value);
  for (int half = kLanes<A> / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) {
      lanes[lane] = lanes[lane] > lanes[lane + half] ? lanes[lane] : lanes[lane + half];
    }
  }
  return lanes[0];
}

}  // namespace
}  // namespace fused_losses::cpu
