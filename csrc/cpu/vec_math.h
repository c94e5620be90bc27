// exp, log, log1p and tanh on registers, by argument reduction and polynomials.
//
// Note [Elementary functions]
// The polynomials are minimax fits (Remez exchange, 50 digits; the relative error of the fit is beside each).
//   exp:   x = n ln 2 + r, |r| <= ln 2 / 2, exp(r) = 1 + r + r^2 q(r); ln 2 is subtracted in two parts (Cody and
//          Waite).
//   log:   x = 2^n (1 + f), 1 + f in [sqrt(1/2), sqrt(2)). In float32 log(1 + f) = f + f^2 q(f), because a division
//          costs more than the longer polynomial; in float64 log(1 + f) = 2 atanh(s) = 2 s + 2 s^3 q(s^2), s = f / (2 +
//          f).
//   log1p: on [0, 1] only, which is all that a binary cross-entropy needs, in the same two ways; log_of_sum is one of
//          any argument.
// tests/native/test_elementary_functions.py holds the largest error of each in ULP over its whole range.
#pragma once

#include "vec.h"

namespace fused_losses::cpu {
namespace {

template <class V, class A, int kCount>
inline V polynomial(V x, const A (&coefficients)[kCount]) {
  V value = V{} + coefficients[kCount - 1];
#pragma GCC unroll 16
  for (int i = kCount - 2; i >= 0; --i) value = value * x + coefficients[i];
  return value;
}

template <class A>
struct MathConstants;

template <>
struct MathConstants<float> {
  static constexpr float kLog2E = 0x1.715476p+0f;
  static constexpr float kLn2High = 0x1.62ep-1f;  // 12 bits: n * kLn2High is exact
  static constexpr float kLn2Low = 3.19461849e-5f;
  static constexpr float kRound = 12582912.0f;    // 1.5 * 2^23
  static constexpr float kExpLowest = -87.3365f;  // exp is subnormal below
  static constexpr float kExpZero = -88.0f;       // where 2^n, n = -127, has become 0
  static constexpr float kExp[] = {0.5000000027f, 0.1666657665f, 0.04166637427f, 0.008363235069f,
                                   0.001394120437f};  // 8e-9
  static constexpr float kLog[] = {-0.4999998916f, 0.3333330806f,  -0.2500152554f, 0.2000303446f,  -0.1661102029f,
                                   0.141629878f,   -0.1320975112f, 0.130085773f,   -0.07825121291f};  // 4e-9
  static constexpr float kTanh[] = {0.3333326579f,    -0.1333189247f,   0.05386147199f,
                                    -0.02147803264f,  0.00804082456f,   -0.002522012175f,
                                    0.0005479980227f, -5.814258635e-05f};  // 1e-8 of tanh
  static constexpr float kTanhNumerator[] = {21.3187454289f, 0.934778755236f};
  static constexpr float kTanhDenominator[] = {63.9562422952f, 28.3867894753f, 1.0f};  // 1.4e-9 of tanh
  static constexpr float kSmallestNormal = 0x1p-126f;
  static constexpr float kTwoToMantissa = 0x1p23f;
  static constexpr int kMantissaBits = 23;
  static constexpr int32_t kExponentBias = 127;
  static constexpr int32_t kSqrtHalfBits = 0x3f3504f3;
  static constexpr float kSqrtTwo = 0x1.6a09e6p+0f;
};

template <>
struct MathConstants<double> {
  static constexpr double kLog2E = 0x1.71547652b82fep+0;
  static constexpr double kLn2High = 0x1.62e42fee00000p-1;  // 32 bits
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kExpLowest = -708.3964;
  static constexpr double kExpZero = -709.0;
  static constexpr double kExp[] = {0.49999999999999999997,   0.1666666666666667103,    0.041666666666666683892,
                                    0.008333333333326083043,  0.0013888888888874327325, 0.00019841269875002816428,
                                    2.4801587347515960777e-5, 2.7557255169160032197e-6, 2.7557252734314130101e-7,
                                    2.510531311491141415e-8,  2.0921652131529976541e-9};  // 2e-19
  static constexpr double kAtanh[] = {
      0.33333333333333333147,  0.20000000000000113123,  0.14285714285690340191,  0.11111111113651695356,
      0.090909089331307296718, 0.076923139189737451875, 0.066665032728106300415, 0.058852656038871041698,
      0.052278371346170545214, 0.050471553043388464267, 0.028986893692807492485, 0.080281371907737097348};  // 1e-21
  static constexpr double kTanhNumerator[] = {1315.138120497854065309, 84.40585059174942771191,
                                              0.9567625276926094605002, 0.00006692806421116094530263};
  static constexpr double kTanhDenominator[] = {3945.414361493573784944, 1831.383296372468279221,
                                                96.64223332011474891414, 1.0};  // 2e-17
  static constexpr int kMantissaBits = 52;
  static constexpr int64_t kExponentBias = 1023;
  static constexpr int64_t kSqrtHalfBits = 0x3fe6a09e667f3bcd;
  static constexpr double kSqrtTwo = 0x1.6a09e667f3bcdp+0;
  static constexpr double kSmallestNormal = 0x1p-1022;
  static constexpr double kTwoToMantissa = 0x1p52;
};

// x <= 88 (float) or 709 (double), -inf and NaN. Results below the smallest normal number are 0 where the processor
// flushes them, as it does in the kernels: see Note [Subnormal numbers]. From kExpZero down they are 0 in any case.
template <class A>
inline Vec<A> exp(Vec<A> x) {
  using C = MathConstants<A>;
  x = bounded_below(broadcast<A>(C::kExpZero), x);
  const Vec<A> n = (x * C::kLog2E + C::kRound) - C::kRound;
  const Vec<A> r = (x - n * C::kLn2High) - n * C::kLn2Low;
  return scale((r * r) * polynomial(r, C::kExp) + r + A(1), n, x, C::kExpLowest);
}

// Note [Tanh]
// For |x| <= 5/4, where nearly every logit under a softcap lies, tanh(x) = x - x^3 q(x^2), and the derivative is
// 1 - tanh^2. A quotient of two short polynomials is q, but in AVX-512's float32, where a division takes as long as
// twenty multiplications, one polynomial. Beyond, with e = exp(-2 |x|) and c = e / (1 + e), |tanh| = 1 - 2 c and the
// derivative 4 (c - c^2), exact where tanh is 1 but for the last digits. Whether there is any such lane decides over
// three quarters of the work, so a loop first does without (kLarge false) and looks whether it may. A lane's result
// depends on its own x alone.
template <class A>
struct Tanh {
  Vec<A> value;
  Vec<A> derivative;
  Vec<A> square;  // of x. Above kTanhSmallSquare both are wrong, but for kLarge
};

template <class A>
constexpr A kTanhSmallSquare = A(25) / A(16);

template <class A>
inline Vec<A> tanh_of_small(Vec<A> x, Vec<A> square) {
  using C = MathConstants<A>;
#if defined(__AVX512F__)
  if constexpr (kSameType<A, float>) return x - (x * square) * polynomial(square, C::kTanh);
#endif
  return x - (x * square) * polynomial(square, C::kTanhNumerator) / polynomial(square, C::kTanhDenominator);
}

template <bool kLarge, class A>
inline Tanh<A> tanh_and_derivative(Vec<A> x) {
  const Vec<A> square = x * x;
  const Vec<A> small = tanh_of_small<A>(x, square);
  if constexpr (!kLarge) {
    return {small, A(1) - small * small, square};
  } else {
    const IntVec<A> sign = bit_cast<IntVec<A>>(-Vec<A>{});  // broadcast(-0) would be 0 + -0, which is 0
    const Vec<A> e = exp<A>(bit_cast<Vec<A>>(bit_cast<IntVec<A>>(x + x) | sign));
    const Vec<A> c = e / (e + A(1));
    const IntVec<A> magnitude = bit_cast<IntVec<A>>(A(1) - (c + c));
    const Vec<A> large = bit_cast<Vec<A>>(magnitude | (bit_cast<IntVec<A>>(x) & sign));
    const IntVec<A> is_small = square <= broadcast(kTanhSmallSquare<A>);
    return {select(is_small, small, large), select(is_small, A(1) - small * small, (c - c * c) * A(4)), square};
  }
}

template <class A>
inline Vec<A> tanh(Vec<A> x) {
  return tanh_and_derivative<true, A>(x).value;
}

// log(1 + f) for -0.3 < f <= 1 by 2 atanh(s), s = f / (2 + f). Since 2 s = f - s f, it is f less a smaller term, and
// the rounding of s hardly counts.
inline Vec<double> log1p_by_atanh(Vec<double> f) {
  const Vec<double> s = f / (f + 2.0);
  const Vec<double> z = s * s;
  return f - s * (f - (z + z) * polynomial(z, MathConstants<double>::kAtanh));
}

// x = 2^exponent * (1 + fraction) with 1 + fraction in [sqrt(1/2), sqrt(2)), for 0 < x < infinity.
template <class A>
struct Reduced {
  Vec<A> exponent;
  Vec<A> fraction;
};

#if defined(__AVX512F__)
// The exponent of 0 is -infinity.
template <class A>
inline Reduced<A> reduce(Vec<A> x) {
  Vec<A> mantissa;
  Vec<A> exponent;
  if constexpr (kSameType<A, float>) {
    mantissa = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
    exponent = _mm512_getexp_ps(x);
  } else {
    mantissa = _mm512_getmant_pd(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src);
    exponent = _mm512_getexp_pd(x);
  }
  const IntVec<A> is_large = mantissa >= broadcast<A>(MathConstants<A>::kSqrtTwo);
  return {select(is_large, exponent + A(1), exponent), select(is_large, mantissa * A(0.5), mantissa) - A(1)};
}
#else
// The exponent of 0 is -150 in float32 and -1075 in float64.
template <class A>
inline Reduced<A> reduce(Vec<A> x) {
  using C = MathConstants<A>;
  const IntVec<A> is_subnormal = x < broadcast<A>(C::kSmallestNormal);
  x = select(is_subnormal, x * C::kTwoToMantissa, x);
  const IntVec<A> bits = bit_cast<IntVec<A>>(x);
  // Biased, so that the difference is positive before the shift: SSE2 and AVX2 have no
  // arithmetic shift of 64-bit lanes.
  constexpr Integer<A> kBias = C::kExponentBias;
  const IntVec<A> n = ((bits - C::kSqrtHalfBits + (kBias << C::kMantissaBits)) >> C::kMantissaBits) - kBias;
  const Vec<A> exponent = __builtin_convertvector(n, Vec<A>);
  const Vec<A> offset = broadcast(static_cast<A>(C::kMantissaBits));
  return {exponent - select(is_subnormal, offset, Vec<A>{}), bit_cast<Vec<A>>(bits - (n << C::kMantissaBits)) - A(1)};
}
#endif

// Both parts of ln 2 are positive, so that log 0 becomes -infinity with an exponent of -infinity.
inline Vec<float> log_of_reduced(Reduced<float> x) {
  using C = MathConstants<float>;
  const Vec<float> f = x.fraction;
  const Vec<float> low = (f * f) * polynomial(f, C::kLog) + x.exponent * C::kLn2Low;
  return x.exponent * C::kLn2High + (f + low);
}
inline Vec<double> log_of_reduced(Reduced<double> x) {
  using C = MathConstants<double>;
  return x.exponent * C::kLn2High + (x.exponent * C::kLn2Low + log1p_by_atanh(x.fraction));
}

// The limits of the logarithm at 0 and infinity, and NaN.
template <class A>
inline Vec<A> with_log_limits(Vec<A> x, Vec<A> result) {
  result = select(x < broadcast(kInfinity<A>), result, x);
  return select(x == Vec<A>{}, broadcast(-kInfinity<A>), result);
}

// x >= 0, and NaN.
template <class A>
inline Vec<A> log(Vec<A> x) {
  return with_log_limits<A>(x, log_of_reduced(reduce<A>(x)));
}

// log(first + second) for 0 <= first <= 1 <= sum, `sum` being their rounded sum, and NaN; log1p(second) where first is
// 1. What the rounding lost is given back to the fraction, as below; from 4 on it would not show.
template <class A>
inline Vec<A> log_of_sum(Vec<A> sum, Vec<A> first, Vec<A> second) {
  const Vec<A> lost = second - (sum - first);
  Reduced<A> reduced = reduce<A>(sum);
  const Vec<A> lost_of_large = select(reduced.exponent == broadcast(A(1)), lost * A(0.5), Vec<A>{});
  reduced.fraction += select(reduced.exponent < broadcast(A(1)), lost, lost_of_large);
  return with_log_limits<A>(sum, log_of_reduced(reduced));
}

// log(x) where `is_log`, else log(1 - x), for 0 <= x <= 1; at most -100 for log 0. What rounding 1 - x lost of x, which
// is exact, is given back to the fraction.
template <class A>
inline Vec<A> log_of_either(IntVec<A> is_log, Vec<A> x) {
  const Vec<A> complement = A(1) - x;
  const Vec<A> lost = (A(1) - complement) - x;
  Reduced<A> reduced = reduce<A>(select(is_log, x, complement));
  // Nothing is lost where 1 - x <= 1/2; elsewhere the exponent is 0 or -1.
  reduced.fraction += select(is_log, Vec<A>{}, select(reduced.exponent < Vec<A>{}, lost + lost, lost));
  return log_of_reduced(reduced);
}

// 0 <= x <= 1, and NaN.
template <class A>
inline Vec<A> log_of_complement(Vec<A> x) {
  return with_log_limits<A>(A(1) - x, log_of_either<A>(IntVec<A>{}, x));
}

// Of (log1p(x) - x) / x^2; 5e-9 of log1p(x).
constexpr float kLog1p[] = {-0.4999993276f, 0.3333051123f,   -0.2495858665f, 0.1969539723f,   -0.1535538826f,
                            0.1068054393f,  -0.05766434522f, 0.0202045381f,  -0.003318463032f};

// 0 <= x <= 1, and NaN.
inline Vec<float> log1p(Vec<float> x) { return (x * x) * polynomial(x, kLog1p) + x; }
inline Vec<double> log1p(Vec<double> x) { return log1p_by_atanh(x); }

}  // namespace
}  // namespace fused_losses::cpu
