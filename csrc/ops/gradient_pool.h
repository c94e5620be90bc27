// Memory of large gradients, kept for the next gradient.
//
// Note [Gradient pool]
// A training step frees the gradient of its logits and the next step asks for one of the same size. From the C library
// that memory comes back fresh, and the system clears every page of it before the first write: more time than the loss.
// The pool keeps the memory instead and tells the system that it may take any page back whenever it wants one
// (MADV_FREE): idle memory is therefore free memory, though a process listing still counts it. It is handed out like
// any uninitialised memory, once its last tensor is gone. A gradient takes whole huge pages, so up to 2 MiB more than
// it has bytes. Bounded by limit_bytes; 0 switches the pool off. Where the system has no MADV_FREE there is no pool.
#pragma once

#include <cstddef>

namespace fused_losses::gradient_pool {

constexpr size_t kDefaultLimitBytes = size_t(2) << 30;

struct Memory {
  void* data = nullptr;
  size_t bytes = 0;  // at least as many as were asked for
};

// Idle memory or fresh, in huge pages where the system has them; nothing for small requests, without a pool, or where
// the system refuses.
Memory take(size_t bytes);

void give_back(Memory memory);

// Idle memory beyond the limit goes back to the system at once.
void set_limit(size_t bytes);
size_t limit();
size_t idle_bytes();

}  // namespace fused_losses::gradient_pool
