// Rows to columns and back in registers: squares of kLanes x kLanes elements by log2(kLanes) rounds of two-register
// shuffles, and a few columns by permutations.
#pragma once

#include "vec.h"

namespace fused_losses::cpu {
namespace {

template <int... kIndices>
struct Indices {};
template <int kCount, int... kIndices>
struct MakeIndices : MakeIndices<kCount - 1, kCount - 1, kIndices...> {};
template <int... kIndices>
struct MakeIndices<0, kIndices...> {
  using type = Indices<kIndices...>;
};

template <class A, int... kIndex>
inline Vec<A> shuffle(Vec<A> a, Vec<A> b) {
  return __builtin_shufflevector(a, b, kIndex...);
}

// Exchanges, for every pair of registers `distance` apart, the lanes whose index differs in that bit.
template <class A, int kDistance, int... kIndex>
inline void exchange(Vec<A> (&rows)[kLanes<A>], Indices<kIndex...>) {
#pragma GCC unroll 16
  for (int row = 0; row < kLanes<A>; ++row) {
    if (row & kDistance) continue;
    const Vec<A> a = rows[row];
    const Vec<A> b = rows[row + kDistance];
    rows[row] = shuffle<A, ((kIndex & kDistance) ? kLanes<A> + kIndex - kDistance : kIndex)...>(a, b);
    rows[row + kDistance] = shuffle<A, ((kIndex & kDistance) ? kLanes<A> + kIndex : kIndex + kDistance)...>(a, b);
  }
}

template <class A, int kDistance = kLanes<A> / 2>
inline void transpose(Vec<A> (&rows)[kLanes<A>]) {
  exchange<A, kDistance>(rows, typename MakeIndices<kLanes<A>>::type{});
  if constexpr (kDistance > 1) transpose<A, kDistance / 2>(rows);
}

// Folds the lanes of each register into one: lane i of the result is what the lanes of registers[i] combine to.
template <class A, int kDistance, class Combine, int... kIndex>
inline void fold_once(Vec<A> (&registers)[kLanes<A>], const Combine& combine, Indices<kIndex...>) {
#pragma GCC unroll 8
  for (int i = 0; i < kDistance; ++i) {
    const Vec<A> a = registers[i];
    const Vec<A> b = registers[i + kDistance];
    registers[i] = combine(shuffle<A, ((kIndex & kDistance) ? kLanes<A> + kIndex - kDistance : kIndex)...>(a, b),
                           shuffle<A, ((kIndex & kDistance) ? kLanes<A> + kIndex : kIndex + kDistance)...>(a, b));
  }
}

template <class A, int kDistance = kLanes<A> / 2, class Combine>
inline Vec<A> fold(Vec<A> (&registers)[kLanes<A>], const Combine& combine) {
  fold_once<A, kDistance>(registers, combine, typename MakeIndices<kLanes<A>>::type{});
  if constexpr (kDistance > 1) {
    return fold<A, kDistance / 2>(registers, combine);
  } else {
    return registers[0];
  }
}

// Which lanes of a register are written.
#if defined(__AVX512F__)
template <class A>
struct LaneMaskOf {
  using type = __mmask16;
};
template <>
struct LaneMaskOf<double> {
  using type = __mmask8;
};
template <class A>
using LaneMask = typename LaneMaskOf<A>::type;
constexpr bool kPermutesDouble = true;
constexpr bool kPermutesFloat = true;

// result, but value[index] in the lanes of the mask.
inline Vec<float> permute(Vec<float> result, LaneMask<float> mask, IntVec<float> index, Vec<float> value) {
  return _mm512_mask_permutexvar_ps(result, mask, bit_cast<__m512i>(index), value);
}
inline Vec<double> permute(Vec<double> result, LaneMask<double> mask, IntVec<double> index, Vec<double> value) {
  return _mm512_mask_permutexvar_pd(result, mask, bit_cast<__m512i>(index), value);
}
#else
template <class A>
using LaneMask = IntVec<A>;
constexpr bool kPermutesDouble = false;
#if defined(__AVX2__)
constexpr bool kPermutesFloat = true;
inline Vec<float> permute(Vec<float> result, LaneMask<float> mask, IntVec<float> index, Vec<float> value) {
  return select(mask, _mm256_permutevar8x32_ps(value, bit_cast<__m256i>(index)), result);
}
#else
constexpr bool kPermutesFloat = false;
#endif
#endif

// Registers of kLanes elements each, in the order of memory, to registers of every count-th element, and back. Each of
// the `count` results takes `count` permutations, so that a square is cheaper from about half as many columns on.
template <class A>
class Interleaving {
 public:
  static constexpr int kMaxColumns = (kSameType<A, float> ? kPermutesFloat : kPermutesDouble) ? kLanes<A> / 2 : 0;

  explicit Interleaving(int64_t count) {
    if (count > kMaxColumns) return;
    const int columns = static_cast<int>(count);
    for (int c = 0; c < columns; ++c) {
      for (int lane = 0; lane < kLanes<A>; ++lane) {
        const int element = lane * columns + c;  // of column c in row `lane`
        set(split_[c], lane, element % kLanes<A>, element / kLanes<A>);
        const int merged = c * kLanes<A> + lane;  // of register c in memory
        set(join_[c], lane, merged / columns, merged % columns);
      }
    }
  }

  template <int kColumns>
  void split(const Vec<A>* registers, Vec<A>* columns) const {
    apply<kColumns>(split_, registers, columns);
  }
  template <int kColumns>
  void join(const Vec<A>* columns, Vec<A>* registers) const {
    apply<kColumns>(join_, columns, registers);
  }

 private:
  static constexpr int kSize = kMaxColumns > 0 ? kMaxColumns : 1;
  // Of one result: the lane that each of its lanes comes from, and for each source the lanes that come from there.
  struct Permutation {
    IntVec<A> index{};
    LaneMask<A> from[kSize] = {};
  };

  static void set(Permutation& permutation, int lane, int source_lane, int source) {
    permutation.index[lane] = static_cast<Integer<A>>(source_lane);
#if defined(__AVX512F__)
    permutation.from[source] = static_cast<LaneMask<A>>(permutation.from[source] | (1u << lane));
#else
    permutation.from[source][lane] = -1;
#endif
  }

  template <int kColumns>
  static void apply(const Permutation* permutations, const Vec<A>* sources, Vec<A>* results) {
    if constexpr (kMaxColumns > 0) {
#pragma GCC unroll 8
      for (int result = 0; result < kColumns; ++result) {
        Vec<A> value{};
#pragma GCC unroll 8
        for (int source = 0; source < kColumns; ++source) {
          value = permute(value, permutations[result].from[source], permutations[result].index, sources[source]);
        }
        results[result] = value;
      }
    }
  }

  Permutation split_[kSize];
  Permutation join_[kSize];
};

}  // namespace
}  // namespace fused_losses::cpu
