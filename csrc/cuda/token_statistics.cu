// The statistics of tokens and their gradient: see Note [Token statistics] in core/token_statistics.h.
//
// Bytes an element: its size for the statistics, which one sweep finds relative to the largest x so far, and twice its
// size for the gradient, which reads what that sweep left. A warp or a block shares a row, so that all that decide
// together take the same way.
#include "../core/token_statistics.h"
#include "launch.h"
#include "launch_bounds.h"
#include "logit_transform.h"
#include "packet_window.cuh"
#include "reduce.h"
#include "rows.h"

namespace fused_losses::cuda {
namespace {

constexpr int kTokenBlockThreads = 256;
constexpr int64_t kNoClass = INT64_MAX;

// Where exp(z) has become 0: products with it are 0 too, and not NaN, for z = -inf.
template <class A>
constexpr A kExpZero = sizeof(A) == 8 ? A(-746) : A(-104);

// Of the classes that a thread has seen, without the target, relative to the largest x among them.
template <class A>
struct TokenSums {
  A max_key = -kInfinity<A>;
  int64_t first_of_max = kNoClass;
  A others = 0;   // sum of exp(z); NaN where a logit is
  A times_x = 0;  // sum of exp(z) z

  template <class T, bool kSoftcapped>
  __device__ __forceinline__ void raise(const LogitTransform<A, kSoftcapped>& transform, A larger_key) {
    if (larger_key == max_key) return;
    const A change = (transform.shift_of(max_key) - transform.shift_of(larger_key)) * transform.factor;
    const bool counts = kSoftcapped || max_key != -kInfinity<A>;
    const A factor = counts ? exp_of_shifted<T>(change) : A(0);
    times_x = factor == A(0) ? A(0) : factor * (times_x + change * others);
    others *= factor;
    max_key = larger_key;
  }
};

template <class T, bool kSoftcapped>
class TokenRow {
 public:
  using A = Accumulation<T>;
  using Transform = LogitTransform<A, kSoftcapped>;

  // A row that does not exist has no classes.
  __device__ __forceinline__ TokenRow(const TokenStatisticsParams& params, const Transform& transform, int64_t position,
                                      bool exists)
      : place_(place_of(position, params.inner_size)),
        logits_(static_cast<const T*>(params.logits) + params.logits_layout.offset(place_)),
        window_(logits_, exists ? params.num_classes : 0),
        num_packets_(static_cast<int>(window_.num_packets())),
        transform_(transform) {}

  __device__ __forceinline__ A logit(int64_t c) const { return to_accumulation(logits_[c]); }

  // Of the class whose unit it is. A NaN among the logits is seen in exp(z), not here.
  __device__ __forceinline__ A shifted(A unit, A shift) const { return (unit - shift) * transform_.factor; }

  // One thread's share: packets thread, thread + kThreads, ... and edges likewise.
  template <int kThreads>
  __device__ __forceinline__ TokenSums<A> sums(int thread, int64_t target_class) const {
    TokenSums<A> result;
    for (int first = thread; first < num_packets_; first += kInFlight * kThreads) {
      Packet<T> logits[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int packet = first + i * kThreads;
        logits[i] = packet < num_packets_ ? window_.load(packet, Reuse::Soon) : Packet<T>::filled(lowest_logit());
      }
      A max_key = result.max_key;
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
#pragma unroll
        for (int k = 0; k < kElements; ++k) max_key = max_of(max_key, transform_.key(logits[i].at(k)));
      }
      if (max_key > result.max_key) {
        result.template raise<T>(transform_, max_key);
#pragma unroll
        for (int i = kInFlight - 1; i >= 0; --i) {  // the first one is found last
#pragma unroll
          for (int k = kElements - 1; k >= 0; --k) {
            if (transform_.key(logits[i].at(k)) == max_key) {
              result.first_of_max = window_.first_element(first + i * kThreads) + k;
            }
          }
        }
      }
      const A shift = transform_.shift_of(max_key);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int packet = first + i * kThreads;
        if (packet < num_packets_) add(result, logits[i], shift, target_class - window_.first_element(packet));
      }
    }
    for (int edge = thread; edge < window_.num_edges(); edge += kThreads) {
      const int64_t c = window_.edge_element(edge);
      const A x = logit(c);
      const A key = transform_.key(x);
      if (key > result.max_key) {
        result.template raise<T>(transform_, key);
        result.first_of_max = c;
      } else if (key == result.max_key && c < result.first_of_max) {
        result.first_of_max = c;
      }
      if (c == target_class) continue;
      const A z = shifted(transform_.unit(x), transform_.shift_of(result.max_key));
      const A exponential = exp_of_shifted<T>(z);
      result.others += exponential;
      result.times_x += exponential * max_of(z, kExpZero<A>);
    }
    return result;
  }

  // The first NaN of classes thread, thread + kThreads, ..., or kNoClass.
  template <int kThreads>
  __device__ __forceinline__ int64_t first_nan(int thread, int64_t num_classes) const {
    for (int64_t c = thread; c < num_classes; c += kThreads) {
      if (logit(c) != logit(c)) return c;
    }
    return kNoClass;
  }

  // d/dl_c = exp(z) (a + b z) dx/dl, and `at_target` for the target.
  template <int kThreads>
  __device__ __forceinline__ void write_gradient(int thread, T* gradient, A shift, A a, A b, int64_t target_class,
                                                 A at_target) const {
    const auto derivative = [&](A logit) {
      const A unit = transform_.unit(logit);
      const A z = shifted(unit, shift);
      return exp_of_shifted<T>(z) * fma_of(max_of(z, kExpZero<A>), b, a) * transform_.derivative(unit);
    };
    const bool packed = window_.is_packed(gradient);
    for (int first = thread; first < num_packets_; first += kInFlight * kThreads) {
      Packet<T> logits[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int packet = first + i * kThreads;
        if (packet < num_packets_) logits[i] = window_.load(packet, Reuse::Never);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int packet = first + i * kThreads;
        if (packet >= num_packets_) continue;
        A values[kElements];
#pragma unroll
        for (int k = 0; k < kElements; ++k) values[k] = derivative(logits[i].at(k));
        const int64_t target_element = target_class - window_.first_element(packet);
        if (is_in_packet(target_element)) {
#pragma unroll
          for (int k = 0; k < kElements; ++k) values[k] = k == target_element ? at_target : values[k];
        }
        window_.store(packet, Packet<T>::of(values), gradient, packed);
      }
    }
    for (int edge = thread; edge < window_.num_edges(); edge += kThreads) {
      const int64_t c = window_.edge_element(edge);
      gradient[c] = from_accumulation<T>(c == target_class ? at_target : derivative(logit(c)));
    }
  }

  template <int kThreads>
  __device__ __forceinline__ void write_zeros(int thread, T* gradient) const {
    const bool packed = window_.is_packed(gradient);
    for (int packet = thread; packet < num_packets_; packet += kThreads) {
      window_.store(packet, Packet<T>::filled(A(0)), gradient, packed);
    }
    for (int edge = thread; edge < window_.num_edges(); edge += kThreads) {
      gradient[window_.edge_element(edge)] = from_accumulation<T>(A(0));
    }
  }

  __device__ __forceinline__ T* gradient(const TokenStatisticsParams& params) const {
    return static_cast<T*>(params.gradient) + params.gradient_layout.offset(place_);
  }

 private:
  static constexpr int kElements = kPacketElements<T>;
  // Packets of a thread that are asked for before the first is used.
  static constexpr int kInFlight = kSoftcapped ? 1 : 2;

  static __device__ __forceinline__ bool is_in_packet(int64_t element) { return element >= 0 && element < kElements; }

  // Below every x that counts: it is no maximum.
  __device__ __forceinline__ A lowest_logit() const { return transform_.logit_of(-kInfinity<A>); }

  // The element at `hole` is not added, if it is one of the packet's.
  __device__ __forceinline__ void add(TokenSums<A>& result, const Packet<T>& logits, A shift, int64_t hole) const {
    A z[kElements];
    A exponentials[kElements];
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      z[k] = shifted(transform_.unit(logits.at(k)), shift);
      exponentials[k] = exp_of_shifted<T>(z[k]);
    }
    if (is_in_packet(hole)) {
#pragma unroll
      for (int k = 0; k < kElements; ++k) exponentials[k] = k == hole ? A(0) : exponentials[k];
    }
    A sum = 0;
    A times_x = 0;
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      sum += exponentials[k];
      times_x = fma_of(exponentials[k], max_of(z[k], kExpZero<A>), times_x);
    }
    result.others += sum;
    result.times_x += times_x;
  }

  Place place_;
  const T* logits_;
  PacketWindow<T, int64_t> window_;
  int num_packets_;  // below 2^31 where there are fewer than 2^32 classes
  const Transform& transform_;
};

// -1 where the target is ignored.
__device__ __forceinline__ int64_t token_target(const TokenStatisticsParams& params, int64_t position) {
  const int64_t index = read_index(params.target, position);
  if (index == params.target.ignore_index) return -1;
  FUSED_LOSSES_DEVICE_ASSERT(index >= 0 && index < params.num_classes);
  return index;
}

template <class A>
__device__ __forceinline__ A read_gradient(const void* gradients, int64_t position) {
  return gradients == nullptr ? A(0) : static_cast<const A*>(gradients)[position];
}

// See Note [Launch bounds].
template <class T, bool kSoftcapped>
constexpr int token_registers() {
  return sizeof(T) == 8 || kBlackwell ? 128 : kSoftcapped ? 80 : 64;
}

// kThreads share a row: a warp or the block.
template <class T, int kThreads, bool kSoftcapped>
__global__ void __launch_bounds__(kTokenBlockThreads, min_blocks(kTokenBlockThreads, token_registers<T, kSoftcapped>()))
    token_statistics_kernel(const __grid_constant__ TokenStatisticsParams params,
                            const __grid_constant__ LogitTransform<Accumulation<T>, kSoftcapped> transform) {
  using A = Accumulation<T>;
  const auto do_row = [&](int64_t position, bool exists, int thread) {
    const TokenRow<T, kSoftcapped> row(params, transform, position, exists);
    const int64_t target = exists ? token_target(params, position) : -1;
    const A target_unit = target >= 0 ? transform.unit(row.logit(target)) : A(0);
    TokenSums<A> sums = row.template sums<kThreads>(thread, target);
    const A max_key = max_of_group<kThreads>(sums.max_key);
    const int64_t first_of_max = min_of_group<kThreads>(sums.max_key == max_key ? sums.first_of_max : kNoClass);
    sums.template raise<T>(transform, max_key);
    A totals[2] = {sums.others, sums.times_x};
    sum_over_group<kThreads>(totals);
    if (!exists) return;

    const A shift = transform.shift_of(max_key);
    const A target_z = row.shifted(target_unit, shift);
    const A target_exponential = target >= 0 ? exp_of_shifted<T>(target_z) : A(0);
    const A others = totals[0];
    const A sum = others + target_exponential;
    const A sum_times_x = fma_of(target_exponential, max_of(target_z, kExpZero<A>), totals[1]);
    // See Note [Confident rows] in core/cross_entropy.h.
    const A log_sum = log1p_of(target >= 0 && target_z == A(0) ? others : sum - A(1));
    int64_t nan_class = kNoClass;
    if (sum != sum) nan_class = min_of_group<kThreads>(row.template first_nan<kThreads>(thread, params.num_classes));
    if (thread != 0) return;
    const bool is_infinite = !kSoftcapped && max_key == kInfinity<A> && nan_class == kNoClass;
    const int64_t largest = max_key == -kInfinity<A> ? 0 : first_of_max;
    static_cast<A*>(params.log_prob)[position] = target >= 0 ? target_z - log_sum : A(0);
    static_cast<A*>(params.log_sum_exp)[position] = is_infinite ? max_key : fma_of(shift, transform.factor, log_sum);
    static_cast<A*>(params.entropy)[position] = log_sum - sum_times_x / sum;
    params.argmax[position] = nan_class != kNoClass ? nan_class : largest;
    static_cast<A*>(params.row_max)[position] = shift;
    static_cast<A*>(params.row_sum)[position] = sum;
    static_cast<A*>(params.row_others)[position] = others;
    static_cast<A*>(params.row_sum_times_x)[position] = sum_times_x;
  };
  for_each_row<kThreads, kTokenBlockThreads>(params.num_positions, do_row);
}

// A row that no gradient comes to has a gradient of zeros, whatever is in it.
template <class T, int kThreads, bool kSoftcapped>
__global__ void __launch_bounds__(kTokenBlockThreads, min_blocks(kTokenBlockThreads, token_registers<T, kSoftcapped>()))
    token_statistics_backward_kernel(const __grid_constant__ TokenStatisticsParams params,
                                     const __grid_constant__ LogitTransform<Accumulation<T>, kSoftcapped> transform) {
  using A = Accumulation<T>;
  const auto do_row = [&](int64_t position, bool exists, int thread) {
    if (!exists) return;
    const TokenRow<T, kSoftcapped> row(params, transform, position, true);
    const int64_t target = token_target(params, position);
    const A grad_log_prob = target >= 0 ? read_gradient<A>(params.grad_log_prob, position) : A(0);
    const A grad_log_sum_exp = read_gradient<A>(params.grad_log_sum_exp, position);
    const A grad_entropy = read_gradient<A>(params.grad_entropy, position);
    T* const gradient = row.gradient(params);
    if (grad_log_prob == A(0) && grad_log_sum_exp == A(0) && grad_entropy == A(0)) {
      return row.template write_zeros<kThreads>(thread, gradient);
    }
    const A shift = static_cast<const A*>(params.row_max)[position];
    const A inverse_sum = A(1) / static_cast<const A*>(params.row_sum)[position];
    const A mean_x = static_cast<const A*>(params.row_sum_times_x)[position] * inverse_sum;
    const A constant = fma_of(grad_entropy, mean_x, grad_log_sum_exp);
    A at_target = 0;
    if (target >= 0) {
      const A unit = transform.unit(row.logit(target));
      const A z = row.shifted(unit, shift);
      const A probability = exp_of_shifted<T>(z) * inverse_sum;
      const A left = static_cast<const A*>(params.row_others)[position] * inverse_sum;
      at_target = probability * fma_of(-grad_entropy, max_of(z, kExpZero<A>), constant) + grad_log_prob * left;
      at_target *= transform.derivative(unit);
    }
    row.template write_gradient<kThreads>(thread, gradient, shift, (constant - grad_log_prob) * inverse_sum,
                                          -grad_entropy * inverse_sum, target, at_target);
  };
  for_each_row<kThreads, kTokenBlockThreads>(params.num_positions, do_row);
}

template <class T, int kThreads, bool kSoftcapped>
void launch_tokens(const TokenStatisticsParams& params, Stream stream) {
  const int64_t blocks = blocks_for(params.num_positions, kTokenBlockThreads / kThreads);
  launch(params.gradient == nullptr ? token_statistics_kernel<T, kThreads, kSoftcapped>
                                    : token_statistics_backward_kernel<T, kThreads, kSoftcapped>,
         {blocks, kTokenBlockThreads}, stream, params,
         LogitTransform<Accumulation<T>, kSoftcapped>(params.logit_scale, params.softcap));
}

// The number of classes alone decides, so that a row has the same bits alone and in a batch.
template <class T, bool kSoftcapped>
void tokens_by_length(const TokenStatisticsParams& params, Stream stream) {
  if (max_packets<T>(params.num_classes) <= 256) return launch_tokens<T, kWarpThreads, kSoftcapped>(params, stream);
  launch_tokens<T, kTokenBlockThreads, kSoftcapped>(params, stream);
}

template <class T>
void tokens_by_softcap(const TokenStatisticsParams& params, Stream stream) {
  if (params.softcap != 0) return tokens_by_length<T, true>(params, stream);
  tokens_by_length<T, false>(params, stream);
}

}  // namespace

void token_statistics(const TokenStatisticsParams& params, Stream stream) {
  switch (params.dtype) {
    case DType::Float32:
      return tokens_by_softcap<float>(params, stream);
    case DType::Float64:
      return tokens_by_softcap<double>(params, stream);
    case DType::BFloat16:
      return tokens_by_softcap<BFloat16>(params, stream);
    case DType::Float16:
      return tokens_by_softcap<Float16>(params, stream);
  }
  __builtin_unreachable();
}

}  // namespace fused_losses::cuda
