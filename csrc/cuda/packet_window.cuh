// A row of elements as aligned packets of 16 bytes, wherever it begins: packet 0 begins at or before the row, and of
// the first and the last packet only the elements that belong to the row are touched.
#pragma once

#include "element.h"

namespace fused_losses::cuda {
namespace {

// I: an integer that counts the row's elements.
template <class T, class I>
class PacketWindow {
 public:
  static constexpr int kElements = kPacketElements<T>;

  __device__ __forceinline__ PacketWindow(const T* row, I count)
      : head_(elements_past_alignment(row)), begin_(row - head_), count_(count) {}

  __device__ __forceinline__ I num_packets() const { return (head_ + count_ + kElements - 1) / kElements; }

  // The number in the row of a packet's first element: below 0 in packet 0 of a row that does not begin aligned.
  __device__ __forceinline__ I first_element(I packet) const { return packet * kElements - head_; }
  __device__ __forceinline__ bool holds(I element) const { return element >= 0 && element < count_; }

  __device__ __forceinline__ bool is_whole(I packet) const {
    const I first = first_element(packet);
    return first >= 0 && first + kElements <= count_;
  }

  // `outside` where an element does not belong to the row, or the packet does not.
  __device__ __forceinline__ Packet<T> load(I packet, T outside, Reuse reuse) const {
    Packet<T> result = load_whole(packet, outside, reuse);
    load_partial(packet, result);
    return result;
  }

  // The two steps of load: packets that lie in the row, and the elements of those that lie in it in part.
  __device__ __forceinline__ Packet<T> load_whole(I packet, T outside, Reuse reuse) const {
    const T* address = begin_ + packet * kElements;
    if (is_whole(packet)) return load_packet(address, reuse);
    Packet<T> result;
#pragma unroll
    for (int k = 0; k < kElements; ++k) result.elements[k] = outside;
    return result;
  }
  __device__ __forceinline__ void load_partial(I packet, Packet<T>& result) const {
    const I first = first_element(packet);
    if (is_whole(packet) || first >= count_) return;
    const T* address = begin_ + packet * kElements;
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      if (holds(first + k)) result.elements[k] = address[k];
    }
  }

  // Stores the packet's elements to `row` (a row of its own, or the same one).
  __device__ __forceinline__ void store(I packet, const Packet<T>& values, T* row) const {
    const I first = first_element(packet);
    if (first >= 0 && first + kElements <= count_ && elements_past_alignment(row) == head_) {
      store_packet(row + first, values);
      return;
    }
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      if (holds(first + k)) row[first + k] = values.elements[k];
    }
  }

 private:
  int head_;
  const T* begin_;
  I count_;
};

// The most packets that a row of so many elements touches.
template <class T>
constexpr int64_t max_packets(int64_t count) {
  return (count + 2 * (kPacketElements<T> - 1)) / kPacketElements<T>;
}

}  // namespace
}  // namespace fused_losses::cuda
