// The units of logits and the gradient of logits from that of units, an array at a time: see UnitTransform in
// kernels.h. Compiled once per instruction set.
#include "logit_units.h"

#include "../core/dtype_dispatch.h"
#include "flush_to_zero.h"
#include "kernels.h"

namespace fused_losses::cpu {
namespace {

template <class T>
void units(const UnitTransform& transform, const T* logits, Accumulation<T>* units, Accumulation<T>* slopes,
           int64_t count) {
  const auto scale = scale_in_unit<Accumulation<T>>(transform);
  if (transform.softcap == 0) return write_scaled(logits, scale, units, count, 0);
  Tangents<T> tangents;
  for (int64_t first = 0; first < count; first += kMaxBlockUnits) {
    const int64_t block = count - first < kMaxBlockUnits ? count - first : kMaxBlockUnits;
    if (slopes == nullptr) {
      tangents.template write<false>(logits + first, scale, units + first, nullptr, block, 0);
    } else {
      tangents.template write<true>(logits + first, scale, units + first, slopes + first, block, 0);
    }
  }
}

template <class AnySlopes, class T>
FUSED_LOSSES_FLATTEN void gradient_of_logits(const AnySlopes& slopes, Accumulation<T> scale,
                                             const Accumulation<T>* gradient, T* result, int64_t count) {
  using A = Accumulation<T>;
  sweep<A>(
      count, [&](int64_t i, int) { store(result + i, slopes.times(load(gradient + i), i) * scale); },
      [&](int64_t i, int64_t rest) {
        const Vec<A> whole = slopes.times(load_partial(gradient + i, rest, A(0)), i, rest);
        store_partial(result + i, whole * scale, rest);
      });
}

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void logit_units(const UnitTransform& transform, DType dtype, const void* logits, void* result, void* slopes,
                 int64_t count) {
  const FlushToZero flush;
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulation<T>;
    units(transform, static_cast<const T*>(logits), static_cast<A*>(result), static_cast<A*>(slopes), count);
  });
}

void logit_gradient(const UnitTransform& transform, DType dtype, const void* slopes, const void* unit_gradient,
                    void* result, int64_t count) {
  const FlushToZero flush;
  by_dtype(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulation<T>;
    const A scale = scale_in_unit<A>(transform);
    const A* gradient = static_cast<const A*>(unit_gradient);
    if (slopes == nullptr) {
      gradient_of_logits(NoSlopes{}, scale, gradient, static_cast<T*>(result), count);
    } else {
      gradient_of_logits(Slopes<A>{static_cast<const A*>(slopes)}, scale, gradient, static_cast<T*>(result), count);
    }
  });
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
