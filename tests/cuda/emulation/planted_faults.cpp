// Kernels with one planted fault each, and their correct twins: what the emulation and the sanitizers must find, and
// what they must let pass.
//
//   planted_faults NAME [ORDER [SEED]]
//
// runs the kernel NAME, its twin as NAME_correct, or every twin as all_correct, in one order, in the one that the
// environment chooses, or in all, and prints the outcomes: "right", "wrong", or "refused: <message>". After a fault
// the twin has to work.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_emulation.h"

namespace {

namespace emulation = fused_losses::emulation;

constexpr int kThreads = 128;
constexpr int kBlocks = 3;
constexpr unsigned kWholeWarp = 0xffffffff;

__device__ __forceinline__ float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kWholeWarp, value, distance);
  return value;
}

// The sum over the block, in every thread.
template <bool kBarrierBeforeRead, bool kBarrierBeforeReuse>
__device__ __forceinline__ float block_sum(float value) {
  float* const warp_sums = emulation::shared_array<float>(kThreads / 32);
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = value;
  if (kBarrierBeforeRead) __syncthreads();
  float total = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) total += warp_sums[warp];
  if (kBarrierBeforeReuse) __syncthreads();
  return total;
}

// Every thread of every block has a number; `element` is where its result goes.
__device__ __forceinline__ int element() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

template <bool kCorrect>
__global__ void read_after_write(float* output) {
  output[element()] = block_sum<kCorrect, true>(threadIdx.x);
}

template <bool kCorrect>
__global__ void write_after_read(float* output) {
  float total = 0;
  for (int round = 0; round < 2; ++round) total += block_sum<true, kCorrect>(round);
  output[element()] = total;
}

template <bool kCorrect>
__global__ void missing_syncwarp(float* output) {
  float* const values = emulation::shared_array<float>(kThreads);
  values[threadIdx.x] = threadIdx.x;
  if (kCorrect) __syncwarp();
  output[element()] = values[threadIdx.x ^ 1];
}

// The shuffle makes the lanes meet, but promises nothing about memory.
template <bool kCorrect>
__global__ void shuffle_as_fence(float* output) {
  float* const values = emulation::shared_array<float>(kThreads);
  values[threadIdx.x] = threadIdx.x;
  __shfl_xor_sync(kWholeWarp, 1, 1);
  if (kCorrect) __syncwarp();
  output[element()] = values[threadIdx.x ^ 1];
}

// A block reads what its neighbour writes.
template <bool kCorrect>
__global__ void race_of_blocks(float* output) {
  const int position = element();
  output[position] = threadIdx.x;
  if (!kCorrect) output[position] += output[(position + kThreads) % (kThreads * kBlocks)];
}

template <bool kCorrect>
__global__ void divergent_barrier(float* output) {
  if (kCorrect || threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  output[element()] = threadIdx.x;
}

// Threads that have exited count as arrived; threads that wait elsewhere do not.
template <bool kCorrect>
__global__ void skipped_barrier(float* output) {
  output[element()] = threadIdx.x;
  if (threadIdx.x == 5) {
    if (!kCorrect) __syncwarp();
    return;
  }
  __syncthreads();
}

template <bool kCorrect>
__global__ void lane_outside_mask(float* output) {
  const unsigned mask = kCorrect ? kWholeWarp : 0x7fffffff;
  output[element()] = __shfl_sync(mask, static_cast<float>(threadIdx.x), static_cast<int>(threadIdx.x % 32));
}

template <bool kCorrect>
__global__ void exited_lane(float* output) {
  output[element()] = threadIdx.x;
  if (threadIdx.x % 32 >= 16) return;
  const unsigned mask = kCorrect ? 0xffff : kWholeWarp;
  output[element()] = __shfl_sync(mask, static_cast<float>(threadIdx.x), static_cast<int>(threadIdx.x % 32));
}

template <bool kCorrect>
__global__ void absent_lane(float* output) {
  float value = threadIdx.x;
  if (threadIdx.x % 32 < 16) {
    value = __shfl_xor_sync(kCorrect ? 0x0000ffff : kWholeWarp, value, 1);
  } else {
    value = __shfl_xor_sync(0xffff0000, value, 1);
    __syncwarp(kCorrect ? 0xffff0000 : kWholeWarp);
  }
  output[element()] = value;
}

// Launched with threads that fill one warp and half of another.
template <bool kCorrect>
__global__ void tail_mask(float* output) {
  const unsigned mask = kCorrect && threadIdx.x >= 32 ? 0xffff : kWholeWarp;
  output[element()] = __shfl_xor_sync(mask, static_cast<float>(threadIdx.x ^ 1), 1);
}

template <bool kCorrect>
__global__ void global_overrun(float* output) {
  const int past_the_end = kThreads * kBlocks;
  output[element()] = threadIdx.x;
  if (!kCorrect && element() == 7) output[past_the_end] = 1;
}

template <bool kCorrect>
__global__ void shared_overrun(float* output) {
  float* const values = emulation::shared_array<float>(kThreads);
  values[threadIdx.x + (kCorrect ? 0 : 1)] = threadIdx.x;
  output[element()] = threadIdx.x;
}

template <bool kCorrect>
__global__ void shared_size(float* output) {
  float* const values = emulation::shared_array<float>(!kCorrect && threadIdx.x == 9 ? 1 : kThreads);
  if (kCorrect) values[threadIdx.x] = 0;
  output[element()] = threadIdx.x;
}

template <bool kCorrect>
__global__ void shared_limit(float* output) {
  constexpr int kDoubles = 48 * 1024 / sizeof(double);
  double* const values = emulation::shared_array<double>(kCorrect ? kDoubles : kDoubles + 1);
  values[threadIdx.x] = threadIdx.x;
  output[element()] = static_cast<float>(values[threadIdx.x]);
}

template <bool kCorrect>
__global__ void uninitialized_shared(float* output) {
  float* const values = emulation::shared_array<float>(kThreads);
  if (kCorrect || threadIdx.x != 70) values[threadIdx.x] = threadIdx.x;
  output[element()] = values[threadIdx.x];
}

// The hint makes it a call, which refuses by itself.
template <bool kCorrect>
__global__ void misaligned_load(float* output) {
  alignas(16) static const float values[8] = {};
  const uint4 words = __ldcs(reinterpret_cast<const uint4*>(values + (kCorrect ? 0 : 1)));
  __stcs(output + element(), static_cast<float>(threadIdx.x) + (words.x != 0));
}

// A GPU refuses it too, but only when it runs.
template <bool kCorrect>
__global__ void cache_hint_for_shared_memory(float* output) {
  float* const values = emulation::shared_array<float>(kThreads);
  values[threadIdx.x] = threadIdx.x;
  output[element()] = kCorrect ? values[threadIdx.x] : __ldcs(values + threadIdx.x);
}

// Without one it is left to UndefinedBehaviorSanitizer.
template <bool kCorrect>
__global__ void misaligned_access(float* output) {
  float* const values = emulation::shared_array<float>(2 * kThreads + 1);
  const uint2 words = *reinterpret_cast<const uint2*>(values + 2 * threadIdx.x + (kCorrect ? 0 : 1));
  output[element()] = static_cast<float>(threadIdx.x) + (words.x == 0);
}

template <bool kCorrect>
__global__ void device_assert(float* output) {
  emulation::device_assert(kCorrect || threadIdx.x != 77, "target < num_classes", __FILE__, __LINE__);
  output[element()] = threadIdx.x;
}

struct Case {
  void (*faulty)(float* output);
  void (*correct)(float* output);
  float (*expected)(int thread);
  int threads = kThreads;
};

#define CASE(name, ...)                             \
  {                                                 \
    #name, { name<false>, name<true>, __VA_ARGS__ } \
  }

float own_number(int thread) { return static_cast<float>(thread); }
float neighbor_number(int thread) { return static_cast<float>(thread ^ 1); }
float sum_of_numbers(int) { return kThreads * (kThreads - 1) / 2; }
float number_of_threads(int) { return kThreads; }

const std::map<std::string, Case> kCases = {
    CASE(read_after_write, sum_of_numbers),  CASE(write_after_read, number_of_threads),
    CASE(missing_syncwarp, neighbor_number), CASE(shuffle_as_fence, neighbor_number),
    CASE(race_of_blocks, own_number),        CASE(divergent_barrier, own_number),
    CASE(skipped_barrier, own_number),       CASE(lane_outside_mask, own_number),
    CASE(exited_lane, own_number),           CASE(absent_lane, neighbor_number),
    CASE(tail_mask, own_number, 48),         CASE(global_overrun, own_number),
    CASE(shared_overrun, own_number),        CASE(shared_size, own_number),
    CASE(shared_limit, own_number),          CASE(uninitialized_shared, own_number),
    CASE(misaligned_load, own_number),       CASE(misaligned_access, own_number),
    CASE(device_assert, own_number),         CASE(cache_hint_for_shared_memory, own_number),
};

std::string outcome(void (*kernel)(float*), const Case& test) {
  std::vector<float> output(kThreads * kBlocks);
  try {
    emulation::launch(kernel, kBlocks, test.threads, output.data());
  } catch (const std::runtime_error& error) {
    return std::string("refused: ") + error.what();
  }
  for (int i = 0; i < kBlocks * test.threads; ++i) {
    if (!(output[i] == test.expected(i % test.threads))) return "wrong";
  }
  return "right";
}

void report(const std::string& order, const std::string& name, void (*kernel)(float*), const Case& test) {
  const std::string found = outcome(kernel, test);
  std::printf("%s %s: %s\n", order.c_str(), name.c_str(), found.c_str());
  if (found != "right" && outcome(test.correct, test) != "right") std::puts("and nothing works from then on");
  std::fflush(stdout);
}

}  // namespace

int main(int num_arguments, char** arguments) {
  if (num_arguments < 2) return std::fputs("planted_faults NAME [ORDER [SEED]]\n", stderr), 2;
  const std::string name = arguments[1];
  const uint64_t seed = num_arguments > 3 ? std::strtoull(arguments[3], nullptr, 10) : 0;
  std::vector<std::string> orders = {"ascending", "descending", "random", "warps"};
  if (num_arguments > 2) orders = {arguments[2]};
  for (const std::string& order : orders) {
    if (order != "environment") emulation::set_order(emulation::order_named(order), seed);
    for (const auto& [fault, test] : kCases) {
      if (name == fault) report(order, fault, test.faulty, test);
      if (name == fault + "_correct" || name == "all_correct") report(order, fault, test.correct, test);
    }
  }
}
