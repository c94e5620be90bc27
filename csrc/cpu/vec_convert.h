// The register operations that differ between instruction sets: 16-bit conversions, maxima, fused products, scaling by
// 2^n. Each has a portable version; x86 replaces those where one instruction does the work.
#pragma once

#include "vec_types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace fused_losses::cpu {
namespace {

// Note [NaN in maxima]
// max_of(a, b) returns b when either is NaN, as the x86 instruction does. With the bound first a NaN in
// the data survives clamping; with the accumulator second a NaN is passed over, which is harmless for a running maximum
// because the exponential of the NaN itself then spoils the sum.
#if defined(__AVX512F__)
inline Vec<float> max_of(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a, b); }
inline Vec<double> max_of(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a, b); }
#elif defined(__AVX2__)
inline Vec<float> max_of(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
inline Vec<double> max_of(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a, b); }
#elif defined(__SSE2__)
inline Vec<float> max_of(Vec<float> a, Vec<float> b) { return _mm_max_ps(a, b); }
inline Vec<double> max_of(Vec<double> a, Vec<double> b) { return _mm_max_pd(a, b); }
#else
template <class V>
inline V max_of(V a, V b) {
  return a > b ? a : b;
}
#endif

// a b - c in one rounding where the instruction set has it. Left to the compiler, a b - c d may round either product
// first, and differently in two loops that must agree to the bit.
template <class V>
inline V multiply_subtract(V a, V b, V c) {
#if defined(__AVX512F__)
  if constexpr (kSameType<V, Vec<float>>) {
    return _mm512_fmsub_ps(a, b, c);
  } else {
    return _mm512_fmsub_pd(a, b, c);
  }
#elif defined(__FMA__)
  if constexpr (kSameType<V, Vec<float>>) {
    return _mm256_fmsub_ps(a, b, c);
  } else {
    return _mm256_fmsub_pd(a, b, c);
  }
#elif defined(__aarch64__)
  if constexpr (kSameType<V, Vec<float>>) {
    return bit_cast<V>(
        vnegq_f32(vfmsq_f32(bit_cast<float32x4_t>(c), bit_cast<float32x4_t>(a), bit_cast<float32x4_t>(b))));
  } else {
    return bit_cast<V>(
        vnegq_f64(vfmsq_f64(bit_cast<float64x2_t>(c), bit_cast<float64x2_t>(a), bit_cast<float64x2_t>(b))));
  }
#else
  return a * b - c;
#endif
}

inline bool any_lane(IntVec<float> mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask(bit_cast<__m512i>(mask)) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(bit_cast<__m256>(mask)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps(bit_cast<__m128>(mask)) != 0;
#else
  int32_t combined = 0;
  for (int lane = 0; lane < kLanes<float>; ++lane) combined |= mask[lane];
  return combined != 0;
#endif
}

inline bool any_lane(IntVec<double> mask) { return any_lane(bit_cast<IntVec<float>>(mask)); }

inline bool any_bit(IntVec<float> bits) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(bit_cast<__m512i>(bits), bit_cast<__m512i>(bits)) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256(bit_cast<__m256i>(bits), bit_cast<__m256i>(bits)) == 0;
#else
  return any_lane(bits != 0);
#endif
}

inline bool any_bit(IntVec<double> bits) { return any_bit(bit_cast<IntVec<float>>(bits)); }

template <class A>
inline UnsignedVec<A> max_of(UnsignedVec<A> a, UnsignedVec<A> b) {
  return a > b ? a : b;
}

// For x at which 2^n, n = x log2(e) rounded, may have no normal number. scale(value, n, x, lowest) is value * 2^n for
// what this left of x, and 0 where x < lowest: the instruction for it must not see the others, since it needs an assist
// where it underflows. Elsewhere the bits of 2^n become 0 instead, which `bound` sees to.
#if defined(__AVX512F__)
template <class V>
inline V bounded_below(V, V x) {
  return x;
}
inline Vec<float> scale(Vec<float> value, Vec<float> exponent, Vec<float> x, float lowest) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, broadcast(lowest), _CMP_NLT_UQ), value, exponent);
}
inline Vec<double> scale(Vec<double> value, Vec<double> exponent, Vec<double> x, double lowest) {
  return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(x, broadcast(lowest), _CMP_NLT_UQ), value, exponent);
}
#else
template <class V>
inline V bounded_below(V bound, V x) {
  return max_of(bound, x);  // a NaN stays: see Note [NaN in maxima]
}

template <class A>
struct FloatFormat;
template <>
struct FloatFormat<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr int32_t kExponentBias = 127;
};
template <>
struct FloatFormat<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr int64_t kExponentBias = 1023;
};

template <class V, class A, class I>
inline V scale_by_bits(V value, V exponent) {
  using Format = FloatFormat<A>;
  // 1.5 * 2^mantissa_bits puts the integer into the low bits: no conversion instruction is needed.
  const A magic = static_cast<A>(3ull << (Format::kMantissaBits - 1));
  const I biased = bit_cast<I>(exponent + magic) - (bit_cast<I>(broadcast<A>(magic)) - Format::kExponentBias);
  return value * bit_cast<V>(biased << Format::kMantissaBits);
}
inline Vec<float> scale(Vec<float> value, Vec<float> exponent, Vec<float>, float) {
  return scale_by_bits<Vec<float>, float, IntVec<float>>(value, exponent);
}
inline Vec<double> scale(Vec<double> value, Vec<double> exponent, Vec<double>, double) {
  return scale_by_bits<Vec<double>, double, IntVec<double>>(value, exponent);
}
#endif

inline WordBits widen(HalfBits bits) {
#if defined(__AVX512F__)
  return bit_cast<WordBits>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(bits)));
#elif defined(__AVX2__)
  return bit_cast<WordBits>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(bits)));
#else
  return __builtin_convertvector(bits, WordBits);
#endif
}

inline HalfBits narrow(WordBits bits) {
#if defined(__AVX512F__)
  return bit_cast<HalfBits>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(bits)));
#elif defined(__AVX2__)
  const __m256i packed = _mm256_packus_epi32(bit_cast<__m256i>(bits), bit_cast<__m256i>(bits));
  return bit_cast<HalfBits>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  return __builtin_convertvector(bits, HalfBits);
#endif
}

inline Vec<float> from_bits(HalfBits bits, BFloat16) { return bit_cast<Vec<float>>(widen(bits) << 16); }

inline HalfBits to_bits(Vec<float> value, BFloat16) {
  const WordBits bits = bit_cast<WordBits>(value);
  const WordBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  const WordBits quiet_nan = WordBits{} + 0x7fc0;
  return narrow(value == value ? rounded : quiet_nan);
}

#if defined(__AVX512F__)
inline Vec<float> from_bits(HalfBits bits, Float16) { return _mm512_cvtph_ps(bit_cast<__m256i>(bits)); }
inline HalfBits to_bits(Vec<float> value, Float16) {
  return bit_cast<HalfBits>(_mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)  // the level that has AVX2 has F16C
inline Vec<float> from_bits(HalfBits bits, Float16) { return _mm256_cvtph_ps(bit_cast<__m128i>(bits)); }
inline HalfBits to_bits(Vec<float> value, Float16) {
  return bit_cast<HalfBits>(_mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline Vec<float> from_bits(HalfBits bits, Float16) {
  constexpr uint32_t kRebias = 112u << 23;  // the difference of the exponent biases
  const WordBits wide = widen(bits);
  const WordBits magnitude = (wide & 0x7fff) << 13;
  const WordBits normal = magnitude + kRebias;
  const WordBits special = normal + kRebias;  // infinity and NaN: the largest exponent of both formats
  const Vec<float> subnormal = __builtin_convertvector(bit_cast<IntVec<float>>(wide & 0x03ff), Vec<float>) * 0x1p-24f;
  WordBits result = (wide & 0x7c00) == 0 ? bit_cast<WordBits>(subnormal) : normal;
  result = (wide & 0x7c00) == 0x7c00 ? special : result;
  return bit_cast<Vec<float>>(result | ((wide & 0x8000) << 16));
}

inline HalfBits to_bits(Vec<float> value, Float16) {
  constexpr uint32_t kRebias = 112u << 10;
  const WordBits bits = bit_cast<WordBits>(value);
  const WordBits magnitude = bits & 0x7fffffff;
  const WordBits normal = ((magnitude + 0x0fff + ((magnitude >> 13) & 1)) >> 13) - kRebias;
  // Adding 1/2 aligns the last bit of the sum with the last bit of a subnormal float16, so the hardware rounds.
  const WordBits half = bit_cast<WordBits>(broadcast(0.5f));
  const WordBits subnormal = bit_cast<WordBits>(bit_cast<Vec<float>>(magnitude) + 0.5f) - half;
  WordBits result = magnitude < 0x38800000 ? subnormal : normal;    // below 2^-14
  result = magnitude >= 0x477ff000 ? WordBits{} + 0x7c00 : result;  // 65520 and above round to infinity
  result = magnitude > 0x7f800000 ? WordBits{} + 0x7e00 : result;
  return narrow(result | ((bits >> 16) & 0x8000));
}
#endif

inline HalfBits load_bits(const void* source) {
  HalfBits bits;
  std::memcpy(&bits, source, sizeof(bits));
  return bits;
}

inline Vec<float> load(const BFloat16* source) { return from_bits(load_bits(source), BFloat16{}); }
inline Vec<float> load(const Float16* source) { return from_bits(load_bits(source), Float16{}); }
inline void store(BFloat16* destination, Vec<float> value) {
  const HalfBits bits = to_bits(value, BFloat16{});
  std::memcpy(destination, &bits, sizeof(bits));
}
inline void store(Float16* destination, Vec<float> value) {
  const HalfBits bits = to_bits(value, Float16{});
  std::memcpy(destination, &bits, sizeof(bits));
}

}  // namespace
}  // namespace fused_losses::cpu
