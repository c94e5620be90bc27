// Warp operations: one completes when every lane of its mask has arrived at the same operation with the same mask.
#pragma once

#include <bit>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "misuse.h"

namespace fused_losses::emulation {

// Where a lane's shuffle reads; beyond the end of its segment it reads itself. Source: PTX ISA, shfl.sync.
inline int source_lane(const Request& request, int lane) {
  const int first = lane & ~(request.width - 1);
  const int last = first | (request.width - 1);
  const int operand = request.lane & (warpSize - 1);
  switch (request.call) {
    case Call::ShuffleUp:
      return lane - operand >= first ? lane - operand : lane;
    case Call::ShuffleDown:
      return lane + operand <= last ? lane + operand : lane;
    case Call::ShuffleXor:
      return (lane ^ operand) <= last ? lane ^ operand : lane;
    default:
      return first | (operand & (request.width - 1));
  }
}

class Warp {
 public:
  Warp(Thread* threads, int num_threads)
      : threads_(threads), present_(num_threads >= warpSize ? ~0u : (1u << num_threads) - 1) {}

  // The lanes that can go on now that `thread` waits at its operation.
  unsigned arrive(const Thread& thread) {
    check(thread);
    const unsigned mask = thread.request.mask;
    Meeting& meeting = find(thread.request);
    meeting.arrived |= 1u << thread.lane();
    if (meeting.arrived != mask) return 0;
    exchange(meeting.call, mask);
    if (kThreadSanitizer && meeting.call == Call::SyncWarp) ++clocks_[mask].num_barriers;
    meeting = meetings_.back();
    meetings_.pop_back();
    return mask;
  }

  void exit(const Thread& thread) {
    present_ &= ~(1u << thread.lane());
    for (const Meeting& meeting : meetings_) {
      if (meeting.mask >> thread.lane() & 1) check(threads_[std::countr_zero(meeting.arrived)]);
    }
  }

  // As Block::barrier_clock, for the next __syncwarp with this mask.
  uint64_t* clock(unsigned mask) {
    Clocks& clocks = clocks_[mask];
    return &clocks.alternating[clocks.num_barriers % 2];
  }

  // The lanes that a waiting thread's operation lacks.
  unsigned missing(const Thread& waiting) { return waiting.request.mask & ~find(waiting.request).arrived; }

 private:
  struct Meeting {
    Call call;
    size_t bytes;  // of the value
    unsigned mask;
    unsigned arrived;
  };

  struct Clocks {
    uint64_t alternating[2] = {};
    unsigned num_barriers = 0;
  };

  Meeting& find(const Request& request) {
    for (Meeting& meeting : meetings_) {
      if (meeting.call == request.call && meeting.bytes == request.bytes && meeting.mask == request.mask) {
        return meeting;
      }
    }
    return meetings_.emplace_back(Meeting{request.call, request.bytes, request.mask, 0});
  }

  // Stricter than CUDA, which lets __syncwarp name lanes that have exited.
  void check(const Thread& thread) const {
    const Request& request = thread.request;
    if (!(request.mask >> thread.lane() & 1)) {
      throw Misuse(thread, describe(request) + ": lane " + std::to_string(thread.lane()) + " is not in its own mask");
    }
    if (const unsigned absent = request.mask & ~present_) {
      throw Misuse(thread, describe(request) +
                               ": the mask names lanes that do not exist or have exited: " + hexadecimal(absent));
    }
    if (request.width < 1 || request.width > warpSize || !std::has_single_bit(static_cast<unsigned>(request.width))) {
      throw Misuse(thread,
                   describe(request) + ": width " + std::to_string(request.width) + " is not a power of two up to 32");
    }
  }

  void exchange(Call call, unsigned mask) {
    if (call == Call::SyncWarp) return;
    unsigned votes = 0;
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      const int lane = std::countr_zero(rest);
      votes |= static_cast<unsigned>(threads_[lane].request.value != 0) << lane;
    }
    for (unsigned rest = mask; rest != 0; rest &= rest - 1) {
      const int lane = std::countr_zero(rest);
      Thread& thread = threads_[lane];
      if (call == Call::Ballot) {
        thread.value = votes;
      } else if (call == Call::Any) {
        thread.value = votes != 0;
      } else if (call == Call::All) {
        thread.value = votes == mask;
      } else {
        // What a lane outside the mask would give is undefined: all bits set, NaN as a floating-point number.
        const int source = source_lane(thread.request, lane);
        thread.value = mask >> source & 1 ? threads_[source].request.value : ~uint64_t{0};
      }
    }
  }

  Thread* threads_;
  unsigned present_;  // lanes that exist and have not exited
  std::vector<Meeting> meetings_;
  std::map<unsigned, Clocks> clocks_;  // of each mask
};

}  // namespace fused_losses::emulation
