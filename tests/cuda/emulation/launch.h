// Launches: one block after another, on the calling host thread, finished on return.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "block.h"
#include "synchronization.h"

namespace fused_losses::emulation {

// Of the whole process.
struct Statistics {
  int64_t launches;
  int64_t blocks;
  int64_t barriers;  // completed __syncthreads(), once for a block
};

struct StatisticsCounters {
  std::atomic<int64_t> launches{0}, blocks{0}, barriers{0};
};
inline StatisticsCounters statistics_counters;

inline Statistics statistics() {
  return {statistics_counters.launches, statistics_counters.blocks, statistics_counters.barriers};
}

inline void run_blocks(Kernel& kernel, int64_t num_blocks, int num_threads) {
  thread_local FiberPool fibers;
  const OrderChoice choice = chosen_order();
  const BlockOrder block_order(choice, num_blocks);
  blockDim = {static_cast<unsigned>(num_threads), 1, 1};
  gridDim = {static_cast<unsigned>(num_blocks), 1, 1};
  ++statistics_counters.launches;
  try {
    for (int64_t i = 0; i < num_blocks; ++i) {
      blockIdx.x = static_cast<unsigned>(block_order[i]);
      const OrderChoice thread_order{choice.order, choice.seed + static_cast<uint64_t>(i)};
      // On the heap, so that ThreadSanitizer forgets the clocks of the block before.
      const auto block = std::make_unique<Block>(kernel, num_threads, thread_order);
      // Consecutive blocks on other fibers: else a race between them would look like one thread's sequence.
      block->run(fibers, kThreadSanitizer && i % 2 == 1 ? num_threads : 0);
      ++statistics_counters.blocks;
      statistics_counters.barriers += block->num_barriers();
    }
  } catch (...) {
    fibers.clear();  // some are in the middle of the kernel
    current_thread = nullptr;
    throw;
  }
  current_thread = nullptr;
}

template <class... Parameters, class... Arguments>
void launch_with_shared_memory(void (*kernel)(Parameters...), int64_t num_blocks, int threads_per_block,
                               size_t dynamic_shared_bytes, Arguments&&... arguments) {
  using Values = std::tuple<std::remove_cv_t<Parameters>...>;
  if (current_thread != nullptr) fail(Call::Misuse, "a launch in a kernel", std::source_location::current());
  if (num_blocks < 1 || num_blocks > INT32_MAX || threads_per_block < 1 || threads_per_block > 1024) {
    throw std::runtime_error("kernel misuse: a launch of " + std::to_string(num_blocks) + " blocks of " +
                             std::to_string(threads_per_block) + " threads");
  }
  if (dynamic_shared_bytes > kMaxDynamicSharedBytes) {
    throw std::runtime_error("kernel misuse: a launch with " + std::to_string(dynamic_shared_bytes) +
                             " bytes of dynamic shared memory");
  }
  const std::pair<void (*)(Parameters...), Values> call(kernel, Values(std::forward<Arguments>(arguments)...));
  const auto state = std::make_unique<Kernel>();
  state->arguments = &call;
  state->dynamic_shared_bytes = dynamic_shared_bytes;
  state->call = [](const void* data) {
    const auto& [function, values] = *static_cast<decltype(&call)>(data);
    std::apply(function, values);
  };
  release(&state->start_clock);
  {
    const IgnoredAccesses ignored;
    run_blocks(*state, num_blocks, threads_per_block);
  }
  acquire(&state->end_clock);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int64_t num_blocks, int threads_per_block, Arguments&&... arguments) {
  launch_with_shared_memory(kernel, num_blocks, threads_per_block, 0, std::forward<Arguments>(arguments)...);
}

}  // namespace fused_losses::emulation
