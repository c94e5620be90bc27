// Memory of large gradients, kept for the next gradient.
//
// Note [Gradient pool]
// A training step frees the gradient of its logits and the next step asks for one of the same size. From the C library
// that memory comes back fresh, and the system clears every page of it before the first write: more time than the loss.
// The pool keeps the memory instead and tells the system that it may take any page back whenever it wants one
// (MADV_FREE): idle memory is therefore free memory, though a process listing still counts it. It is handed out like
// any uninitialised memory, once its last tensor is gone. Bounded by limit_bytes; 0 switches the pool off. Where the
// system has no MADV_FREE there is no pool.
//
// A gradient takes whole pages of 4 KiB, huge ones of 2 MiB as far as they fit: N live gradients hold what torch's
// would, and an eighth more where idle memory of another size serves them. What is behind the last huge page is not
// marked MADV_FREE as long as there is little of it (kUnmarkedLimit): the processor notes the first use of each small
// page that was, at 0.4 us a page.
//
// Where the address space itself is limited (RLIMIT_AS, RLIMIT_DATA, strict overcommit), idle memory would make other
// allocations fail: there the pool stands aside and keeps nothing. The limits of the process are read whenever a
// gradient is taken or given back, so what was idle when it set one counts until then.
//
// Torch's memory profiler (profile_memory=True) is told of allocations by a C++ function alone, outside the stable ABI:
// it does not see pooled gradients. With a limit of 0 it sees them all.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fused_losses::gradient_pool {

constexpr size_t kDefaultLimitBytes = size_t(2) << 30;

struct Memory {
  void* data = nullptr;
  size_t bytes = 0;  // at least as many as were asked for
};

// Idle memory or fresh, in huge pages where the system has them; nothing for small requests, without a pool, where it
// stands aside, or where the system refuses although nothing is idle any more.
Memory take(size_t bytes);

void give_back(Memory memory) noexcept;

// What holds while no block is open. Idle memory beyond the limit goes back to the system at once.
void set_limit(size_t bytes);

// From open_block to close_block the limit is this one, in every thread: the smallest of all open blocks holds, and
// set_limit waits until the last has ended. In a forked process only the blocks of the forking thread live on.
uint64_t open_block(size_t bytes);
void close_block(uint64_t block);

// The one that holds now.
size_t limit();
size_t idle_bytes();

}  // namespace fused_losses::gradient_pool
