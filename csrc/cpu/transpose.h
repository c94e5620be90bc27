// A square of kLanes x kLanes elements transposed in registers: log2(kLanes) rounds of two-register shuffles.
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
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, kIndex...);
#else  // GCC before 12
  return __builtin_shuffle(a, b, IntVec<A>{kIndex...});
#endif
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

}  // namespace
}  // namespace fused_losses::cpu
