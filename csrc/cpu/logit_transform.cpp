// The units of logits and the gradient of logits from that of units, an array at a time: see UnitTransform in
// kernels.h. Compiled once per instruction set.
#include "flush_to_zero.h"
#include "kernels.h"
#include "vec_math.h"

namespace fused_losses::cpu {
namespace {

template <class A>
A sign_of(const UnitTransform& transform) {
  return transform.logit_scale < 0 ? A(-1) : A(1);
}

// each(i, rest) for every register of [0, count), `rest` being less than a register's lanes at the end alone.
template <class A, class Each>
FUSED_LOSSES_FLATTEN inline void for_each_register(int64_t count, const Each& each) {
  for (int64_t i = 0; i < count; i += kLanes<A>) each(i, count - i);
}

template <class T>
Vec<Accumulation<T>> load_some(const T* values, int64_t rest) {
  using A = Accumulation<T>;
  return rest >= kLanes<A> ? load(values) : load_partial(values, rest, A(0));
}

template <class T>
void store_some(T* values, Vec<Accumulation<T>> value, int64_t rest) {
  if (rest >= kLanes<Accumulation<T>>) {
    store(values, value);
  } else {
    store_partial(values, value, rest);
  }
}

template <class T>
void units(const UnitTransform& transform, const T* logits, Accumulation<T>* units, Accumulation<T>* slopes,
           int64_t count) {
  using A = Accumulation<T>;
  if (transform.softcap == 0) {
    const A sign = sign_of<A>(transform);
    for_each_register<A>(
        count, [&](int64_t i, int64_t rest) { store_some(units + i, load_some(logits + i, rest) * sign, rest); });
    return;
  }
  const A factor = static_cast<A>(transform.logit_scale / transform.softcap);
  if (slopes == nullptr) {
    for_each_register<A>(count, [&](int64_t i, int64_t rest) {
      store_some(units + i, tanh<A>(load_some(logits + i, rest) * factor), rest);
    });
    return;
  }
  for_each_register<A>(count, [&](int64_t i, int64_t rest) {
    const TanhAndDerivative<A> unit = tanh_and_derivative<A>(load_some(logits + i, rest) * factor);
    store_some(units + i, unit.value, rest);
    store_some(slopes + i, unit.derivative * factor, rest);
  });
}

template <class T>
void gradient_of_logits(const UnitTransform& transform, const Accumulation<T>* slopes, const Accumulation<T>* gradient,
                        T* result, int64_t count) {
  using A = Accumulation<T>;
  const A sign = sign_of<A>(transform);
  for_each_register<A>(count, [&](int64_t i, int64_t rest) {
    const Vec<A> slope = slopes != nullptr ? load_some(slopes + i, rest) : broadcast(sign);
    store_some(result + i, load_some(gradient + i, rest) * slope, rest);
  });
}

template <class Visit>
void by_type(DType dtype, const Visit& visit) {
  switch (dtype) {
    case DType::Float32:
      return visit(float{});
    case DType::Float64:
      return visit(double{});
    case DType::BFloat16:
      return visit(BFloat16{});
    case DType::Float16:
      return visit(Float16{});
  }
}

}  // namespace

namespace FUSED_LOSSES_CAPABILITY {

void logit_units(const UnitTransform& transform, DType dtype, const void* logits, void* result, void* slopes,
                 int64_t count) {
  const FlushToZero flush;
  by_type(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulation<T>;
    units(transform, static_cast<const T*>(logits), static_cast<A*>(result), static_cast<A*>(slopes), count);
  });
}

void logit_gradient(const UnitTransform& transform, DType dtype, const void* slopes, const void* unit_gradient,
                    void* result, int64_t count) {
  const FlushToZero flush;
  by_type(dtype, [&](auto type) {
    using T = decltype(type);
    using A = Accumulation<T>;
    gradient_of_logits(transform, static_cast<const A*>(slopes), static_cast<const A*>(unit_gradient),
                       static_cast<T*>(result), count);
  });
}

}  // namespace FUSED_LOSSES_CAPABILITY
}  // namespace fused_losses::cpu
