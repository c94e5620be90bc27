// A row of elements as the aligned packets of 16 bytes that lie in it, wherever it begins, and its edges: the elements
// before the first packet and behind the last one, fewer than a packet each. A thread takes an edge as one element, so
// that the loops over packets know no exception.
#pragma once

#include "packet.h"

namespace fused_losses::cuda {
namespace {

// I: an integer that counts the row's elements.
template <class T, class I>
class PacketWindow {
 public:
  static constexpr int kElements = kPacketElements<T>;
  static constexpr int kMaxEdges = 2 * (kElements - 1);

  // A class among the packets: packet -1 where it is on an edge or nowhere.
  struct Spot {
    int packet;
    int element;  // in the packet
  };

  __device__ __forceinline__ PacketWindow(const T* row, I count) : row_(row) {
    const int before = (kElements - elements_past_alignment(row)) % kElements;
    head_ = count < before ? static_cast<int>(count) : before;
    packets_ = (count - head_) / kElements;
    edges_ = static_cast<int>(count - packets_ * kElements);
  }

  __device__ __forceinline__ I num_packets() const { return packets_; }
  __device__ __forceinline__ int num_edges() const { return edges_; }

  // Numbers in the row: of a packet's first element, and of an edge's element.
  __device__ __forceinline__ I first_element(I packet) const { return head_ + packet * kElements; }
  __device__ __forceinline__ I edge_element(int edge) const {
    return edge < head_ ? edge : edge + packets_ * kElements;
  }

  __device__ __forceinline__ Spot find(I element) const {
    const I from_first = element - head_;
    if (from_first < 0 || from_first >= packets_ * kElements) return {-1, 0};
    return {static_cast<int>(from_first / kElements), static_cast<int>(from_first % kElements)};
  }

  // Where a packet of this row begins in `row`, this one or another one. From a thread's first packet the others are
  // constants away: one address is in registers.
  template <class Element>
  __device__ __forceinline__ Element* address(Element* row, int packet) const {
    return row + head_ + int64_t(packet) * kElements;
  }
  __device__ __forceinline__ Packet<T> load(int packet, Reuse reuse) const {
    return load_packet(address(row_, packet), reuse);
  }
  __device__ __forceinline__ T load_edge(int edge, T outside) const {
    return edge < edges_ ? row_[edge_element(edge)] : outside;
  }

  // Whether the elements of this row, another one or the same, lie in packets as this one's do.
  __device__ __forceinline__ bool is_packed(const T* row) const { return elements_past_alignment(row + head_) == 0; }

  // Stores the packet's elements to `row`; `packed` is is_packed(row), found out once for a row.
  __device__ __forceinline__ void store(int packet, const Packet<T>& values, T* row, bool packed) const {
    store_at(address(row, packet), values, packed);
  }
  static __device__ __forceinline__ void store_at(T* address, const Packet<T>& values, bool packed) {
    if (packed) return store_packet(address, values);
#pragma unroll
    for (int k = 0; k < kElements; ++k) address[k] = from_accumulation<T>(values.at(k));
  }

 private:
  const T* row_;
  int head_;
  int edges_;
  I packets_;
};

// The most packets that lie in a row of so many elements.
template <class T>
constexpr int64_t max_packets(int64_t count) {
  return count / kPacketElements<T>;
}

}  // namespace
}  // namespace fused_losses::cuda
