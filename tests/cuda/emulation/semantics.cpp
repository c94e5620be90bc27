// What the emulated CUDA does where a kernel makes no mistake. Prints what is not as it should be, and exits with 1.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda_emulation.h"

namespace {

namespace emulation = fused_losses::emulation;

constexpr unsigned kWholeWarp = 0xffffffff;

std::atomic<int> failures{0};

void check(bool ok, const char* condition, int line) {
  if (!ok) std::printf("semantics.cpp:%d: %s\n", line, condition), ++failures;
}
#define CHECK(condition) check(condition, #condition, __LINE__)

template <class... Arguments>
std::string error_of(Arguments... arguments) {
  try {
    emulation::launch(arguments...);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

// Shuffles, against the words of the CUDA C++ Programming Guide: a warp is a row of segments of `width` lanes, each
// with its own lane 0.

template <class T>
__global__ void shuffles(T* output, int operand, int width) {
  const int lane = static_cast<int>(threadIdx.x);
  const T value = static_cast<T>(lane + 100);
  output[0 + lane] = __shfl_sync(kWholeWarp, value, operand, width);
  output[32 + lane] = __shfl_up_sync(kWholeWarp, value, operand, width);
  output[64 + lane] = __shfl_down_sync(kWholeWarp, value, operand, width);
  output[96 + lane] = __shfl_xor_sync(kWholeWarp, value, operand, width);
}

template <class T>
std::array<int, 128> lanes_shuffled(int operand, int width) {
  std::array<T, 128> output;
  emulation::launch(shuffles<T>, 1, 32, output.data(), operand, width);
  std::array<int, 128> sources;
  for (int i = 0; i < 128; ++i) sources[i] = static_cast<int>(output[i]) - 100;
  return sources;
}

void check_shuffles(std::array<int, 128> (*lanes_shuffled)(int operand, int width)) {
  for (const int width : {1, 2, 4, 8, 16, 32}) {
    for (int operand = 0; operand < 32; ++operand) {
      const std::array<int, 128> sources = lanes_shuffled(operand, width);
      for (int lane = 0; lane < 32; ++lane) {
        const int in_segment = lane % width;
        const int segment = lane - in_segment;
        const int by_xor = lane ^ operand;
        CHECK(sources[0 + lane] == segment + operand % width);
        CHECK(sources[32 + lane] == (in_segment < operand ? lane : lane - operand));
        CHECK(sources[64 + lane] == (in_segment + operand >= width ? lane : lane + operand));
        CHECK(sources[96 + lane] == (by_xor >= segment + width ? lane : by_xor));
      }
    }
  }
}

// A value from outside the mask is undefined; here it is NaN.
__global__ void shuffle_from_outside(float* output) {
  if (threadIdx.x < 8) output[threadIdx.x] = __shfl_down_sync(0xff, 1.0f, 4);
}

void check_shuffle_from_outside() {
  std::vector<float> output(8);
  emulation::launch(shuffle_from_outside, 1, 32, output.data());
  for (int lane = 0; lane < 8; ++lane) CHECK((output[lane] == 1) == (lane < 4));
}

__global__ void votes(unsigned* output, unsigned predicates) {
  const int predicate = (predicates >> threadIdx.x & 1) * 64;
  const unsigned half = threadIdx.x < 16 ? 0x0000ffff : 0xffff0000;
  output[0 + threadIdx.x] = __ballot_sync(kWholeWarp, predicate);
  output[32 + threadIdx.x] = __ballot_sync(half, predicate);
  output[64 + threadIdx.x] = static_cast<unsigned>(__any_sync(half, predicate));
  output[96 + threadIdx.x] = static_cast<unsigned>(__all_sync(half, predicate));
}

void check_votes() {
  for (const unsigned predicates : {0u, 1u, 0xffffu, 0xffff0000u, 0x80000001u, 0x12345678u, ~0u}) {
    std::vector<unsigned> output(128);
    emulation::launch(votes, 1, 32, output.data(), predicates);
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned half = lane < 16 ? 0x0000ffff : 0xffff0000;
      CHECK(output[0 + lane] == predicates);
      CHECK(output[32 + lane] == (predicates & half));
      CHECK(output[64 + lane] == ((predicates & half) != 0));
      CHECK(output[96 + lane] == ((predicates & half) == half));
    }
  }
}

// Groups of one warp at different places, with different masks, at once. Each exchanges through shared memory, too.
__global__ void sub_warp_groups(int* output) {
  int* const values = emulation::shared_array<int>(128);
  const unsigned group = threadIdx.x / 4 % 8;
  const unsigned mask = 0xfu << group * 4;
  int sum = 0;
  for (unsigned round = 0; round <= group; ++round) {
    values[threadIdx.x] = static_cast<int>(round);
    __syncwarp(mask);
    sum += values[threadIdx.x ^ 3] + __shfl_xor_sync(mask, 1, 1);
    __syncwarp(mask);
  }
  output[threadIdx.x] = sum;
}

void check_sub_warp_groups() {
  std::vector<int> output(128);
  emulation::launch(sub_warp_groups, 1, 128, output.data());
  for (int thread = 0; thread < 128; ++thread) {
    const int group = thread / 4 % 8;
    CHECK(output[thread] == group * (group + 1) / 2 + group + 1);
  }
}

// Shared memory: one array for each declaration, the same in every call; fresh in every block.

template <class T>
__device__ T* declared_in_a_function() {
  return emulation::shared_array<T>(3);
}

__global__ void shared_arrays(int* output) {
  double* const aligned = emulation::shared_array<double>(5);
  int* const first = declared_in_a_function<int>();
  int* const again = declared_in_a_function<int>();
  unsigned* const other_type = declared_in_a_function<unsigned>();
  if (threadIdx.x == 0) {
    const bool fresh = aligned[0] != aligned[0] && first[2] == -1;
    const bool distinct = first == again && static_cast<void*>(first) != static_cast<void*>(other_type);
    output[blockIdx.x] = fresh && distinct && reinterpret_cast<uintptr_t>(aligned) % 16 == 0;
  }
  __syncthreads();
  first[threadIdx.x % 3] = aligned[0] != aligned[0];  // races, with one value
}

void check_shared_arrays() {
  std::vector<int> output(5);
  if (!emulation::kThreadSanitizer) emulation::launch(shared_arrays, 5, 64, output.data());
  for (const int ok : output) CHECK(ok || emulation::kThreadSanitizer);
}

// Dynamic shared memory: one array for the block, of as many bytes as the launch says.

__global__ void dynamic_shared_array(int* output) {
  float* const first = static_cast<float*>(emulation::dynamic_shared_array());
  int* const again = static_cast<int*>(emulation::dynamic_shared_array());
  const bool fresh = first[threadIdx.x] != first[threadIdx.x];
  again[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  const bool same = static_cast<void*>(first) == again && again[63 - threadIdx.x] == 63 - static_cast<int>(threadIdx.x);
  output[64 * blockIdx.x + threadIdx.x] = fresh && same && reinterpret_cast<uintptr_t>(first) % 16 == 0;
}

void check_dynamic_shared_array() {
  std::vector<int> output(2 * 64);
  emulation::launch_with_shared_memory(dynamic_shared_array, 2, 64, 64 * sizeof(int), output.data());
  CHECK(std::count(output.begin(), output.end(), 1) == 2 * 64);
}

// The last block to finish adds up what all wrote, as CUDA's threadFenceReduction sample does.
__global__ void last_block_sums(int* partial_sums, unsigned* num_finished, int* output) {
  int* const is_last = emulation::shared_array<int>(1);
  if (threadIdx.x == 0) {
    partial_sums[blockIdx.x] = static_cast<int>(blockIdx.x) + 1;
    __threadfence();
    *is_last = atomicInc(num_finished, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!*is_last) return;
  __threadfence();
  if (threadIdx.x == 1) {
    for (unsigned block = 0; block < gridDim.x; ++block) *output += partial_sums[block];
  }
}

__global__ void atomics(int* sum, unsigned* count, int* exchanged) {
  atomicAdd(sum, static_cast<int>(threadIdx.x));
  atomicAdd(count, 1u);
  atomicExch(exchanged, 7);
}

void check_atomics() {
  std::vector<int> partial_sums(9);
  unsigned num_finished = 0;
  int output = 0;
  emulation::launch(last_block_sums, 9, 64, partial_sums.data(), &num_finished, &output);
  CHECK(output == 45);
  CHECK(num_finished == 0);

  int sum = 0;
  int exchanged = 0;
  unsigned count = 0;
  emulation::launch(atomics, 2, 64, &sum, &count, &exchanged);
  CHECK(sum == 64 * 63 && count == 128 && exchanged == 7);
}

// Orders

__global__ void record_order(int* next, int* output) {
  output[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

std::vector<int> order_of_execution(emulation::Order order, uint64_t seed) {
  emulation::set_order(order, seed);
  std::vector<int> output(7 * 70);
  int next = 0;
  emulation::launch(record_order, 7, 70, &next, output.data());
  return output;
}

void check_orders() {
  std::vector<int> ascending(7 * 70);
  for (int i = 0; i < 7 * 70; ++i) ascending[i] = i;
  CHECK(order_of_execution(emulation::Order::Ascending, 0) == ascending);
  CHECK(order_of_execution(emulation::Order::Descending, 0) == std::vector<int>(ascending.rbegin(), ascending.rend()));
  for (const emulation::Order order : {emulation::Order::RandomThread, emulation::Order::RandomWarpPriority}) {
    std::vector<int> random = order_of_execution(order, 1);
    CHECK(random != ascending);
    CHECK(random == order_of_execution(order, 1));
    CHECK(random != order_of_execution(order, 2));
    std::sort(random.begin(), random.end());
    CHECK(random == ascending);
  }
}

// Launches

__global__ void nothing() {}
__global__ void barriers(int count) {
  if (threadIdx.x == 3) return;
  for (int i = 0; i < count; ++i) __syncthreads();
}
__global__ void deep_stack(int* output) {
  volatile char bytes[40 * 1024];
  bytes[0] = 1;
  __syncthreads();
  output[threadIdx.x] = bytes[0];
}
__global__ void launch_in_a_kernel() { emulation::launch(nothing, 1, 1); }

std::string error_with_shared_memory(size_t bytes) {
  try {
    emulation::launch_with_shared_memory(nothing, 1, 32, bytes);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

void check_launches() {
  CHECK(error_of(nothing, 1, 1).empty());
  CHECK(error_of(nothing, 1, 1024).empty());
  CHECK(!error_of(nothing, 0, 32).empty());
  CHECK(!error_of(nothing, int64_t{1} << 31, 32).empty());
  CHECK(!error_of(nothing, 1, 0).empty());
  CHECK(!error_of(nothing, 1, 1025).empty());
  CHECK(!error_of(launch_in_a_kernel, 1, 32).empty());
  CHECK(error_with_shared_memory(emulation::kMaxDynamicSharedBytes).empty());
  CHECK(!error_with_shared_memory(emulation::kMaxDynamicSharedBytes + 1).empty());

  const emulation::Statistics before = emulation::statistics();
  emulation::launch(barriers, 4, 33, 5);
  const emulation::Statistics after = emulation::statistics();
  CHECK(after.launches == before.launches + 1);
  CHECK(after.blocks == before.blocks + 4);
  CHECK(after.barriers == before.barriers + 20);

  std::vector<int> output(64);
  emulation::launch(deep_stack, 1, 64, output.data());
  CHECK(std::count(output.begin(), output.end(), 1) == 64);
}

void check_host_threads() {
  std::vector<std::thread> hosts;
  for (int host = 0; host < 4; ++host) {
    hosts.emplace_back([] {
      for (int i = 0; i < 10; ++i) check_sub_warp_groups();
      CHECK(!error_of(nothing, 1, 0).empty());
      check_votes();
    });
  }
  for (std::thread& host : hosts) host.join();
}

}  // namespace

int main() {
  for (const char* const order : {"ascending", "descending", "random", "warps"}) {
    emulation::set_order(emulation::order_named(order), 3);
    check_shuffles(lanes_shuffled<float>);
    check_shuffles(lanes_shuffled<int64_t>);
    check_shuffle_from_outside();
    check_votes();
    check_sub_warp_groups();
    check_shared_arrays();
    check_dynamic_shared_array();
    check_atomics();
  }
  check_launches();
  check_host_threads();
  check_shuffles(lanes_shuffled<int>);
  check_shuffles(lanes_shuffled<unsigned>);
  check_shuffles(lanes_shuffled<double>);
  check_orders();
  return failures == 0 ? 0 : 1;
}
