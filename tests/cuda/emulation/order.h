// The order of execution: CUDA promises none, so a kernel has to give the same result in all of these.
#pragma once

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace fused_losses::emulation {

enum class Order {
  Ascending,           // the first thread that can run; blocks in sequence
  Descending,          // the last one; blocks in reverse
  RandomThread,        // any one, after every wait; blocks shuffled
  RandomWarpPriority,  // warps in a random order, each as far as it gets; blocks shuffled
};

struct OrderChoice {
  Order order = Order::Ascending;
  uint64_t seed = 0;
};

inline Order order_named(const std::string& name) {
  if (name == "ascending") return Order::Ascending;
  if (name == "descending") return Order::Descending;
  if (name == "random") return Order::RandomThread;
  if (name == "warps") return Order::RandomWarpPriority;
  throw std::runtime_error("an emulation order is ascending, descending, random or warps, not " + name);
}

inline OrderChoice order_from_environment() {
  const char* const order = std::getenv("FUSED_LOSSES_EMULATION_ORDER");
  const char* const seed = std::getenv("FUSED_LOSSES_EMULATION_SEED");
  return {order != nullptr ? order_named(order) : Order::Ascending,
          seed != nullptr ? std::strtoull(seed, nullptr, 10) : 0};
}

// The choice for the process: the environment's, until somebody sets one.
inline std::mutex order_mutex;
inline std::optional<OrderChoice> order_choice;

inline void set_order(Order order, uint64_t seed = 0) {
  const std::lock_guard lock(order_mutex);
  order_choice = {order, seed};
}

inline OrderChoice chosen_order() {
  const std::lock_guard lock(order_mutex);
  if (!order_choice) order_choice = order_from_environment();
  return *order_choice;
}

// Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators (OOPSLA 2014).
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}
  uint64_t operator()() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // Of limits below 2^32.
  uint64_t below(uint64_t limit) { return ((*this)() >> 32) * limit >> 32; }

 private:
  uint64_t state_;
};

// The i-th block to run.
class BlockOrder {
 public:
  BlockOrder(OrderChoice choice, int64_t num_blocks) : num_blocks_(num_blocks) {
    if (choice.order == Order::Ascending) return;
    if (choice.order == Order::Descending) {
      stride_ = num_blocks - 1;
      first_ = num_blocks - 1;
      return;
    }
    SplitMix64 random(choice.seed);
    first_ = static_cast<int64_t>(random.below(num_blocks));
    do {
      stride_ = static_cast<int64_t>(random.below(num_blocks));
    } while (std::gcd(stride_, num_blocks) != 1);
  }
  // num_blocks is below 2^31, so the product fits.
  int64_t operator[](int64_t i) const { return (first_ + i * stride_) % num_blocks_; }

 private:
  int64_t num_blocks_;
  int64_t first_ = 0;
  int64_t stride_ = 1;
};

// The threads of a block that can run, and which of them does.
class ReadyThreads {
 public:
  ReadyThreads(OrderChoice choice, int num_threads)
      : order_(choice.order), random_(choice.seed), lanes_((num_threads + 31) / 32), priority_(lanes_.size()) {
    for (int thread = 0; thread < num_threads; ++thread) add(thread);
    std::iota(priority_.begin(), priority_.end(), 0);
    shuffle_warps();
  }

  void add(int thread) { add_lanes(thread / 32, 1u << thread % 32); }

  void add_lanes(int warp, uint32_t lanes) {
    lanes_[warp] |= lanes;
    warps_ |= 1u << warp;
  }

  void shuffle_warps() {
    if (order_ != Order::RandomWarpPriority) return;
    for (size_t i = priority_.size(); i > 1; --i) std::swap(priority_[i - 1], priority_[random_.below(i)]);
  }

  // Takes the next thread out; -1 if none can run.
  int take() {
    if (warps_ == 0) return -1;
    int warp = 0;
    int lane = 0;
    switch (order_) {
      case Order::Ascending:
        warp = std::countr_zero(warps_);
        lane = std::countr_zero(lanes_[warp]);
        break;
      case Order::Descending:
        warp = 31 - std::countl_zero(warps_);
        lane = 31 - std::countl_zero(lanes_[warp]);
        break;
      case Order::RandomThread: {  // the first one after a random place
        const int start = static_cast<int>(random_.below(lanes_.size() * 32));
        warp = start / 32;
        uint32_t lanes = lanes_[warp] & ~0u << start % 32;
        if (lanes == 0) {
          const uint32_t above = warps_ & ~1u << warp;
          warp = std::countr_zero(above != 0 ? above : warps_);
          lanes = lanes_[warp];
        }
        lane = std::countr_zero(lanes);
        break;
      }
      case Order::RandomWarpPriority: {
        size_t i = 0;
        while (lanes_[priority_[i]] == 0) ++i;
        warp = priority_[i];
        lane = nth_lane(lanes_[warp], static_cast<int>(random_.below(std::popcount(lanes_[warp]))));
        break;
      }
    }
    lanes_[warp] &= ~(1u << lane);
    if (lanes_[warp] == 0) warps_ &= ~(1u << warp);
    return warp * 32 + lane;
  }

 private:
  static int nth_lane(uint32_t lanes, int n) {
    for (; n > 0; --n) lanes &= lanes - 1;
    return std::countr_zero(lanes);
  }

  Order order_;
  SplitMix64 random_;
  uint32_t warps_ = 0;           // those with a lane that can run
  std::vector<uint32_t> lanes_;  // [num_warps]
  std::vector<int> priority_;    // [num_warps] a permutation of the warps
};

}  // namespace fused_losses::emulation
