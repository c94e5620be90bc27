// Registers and memory: load with widening, store with rounding, streaming, partial registers, reductions over lanes.
#pragma once

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
