// Adjacent elements that are read and written in one access.
//
// Note [Packets are words]
// A chunk is its words, not its elements: an element of 16 bits by itself takes a register as wide as a word. So it is
// taken out of its word where it is used, in one instruction, and results are put in by pairs, in one as well.
#pragma once

#include "element.h"

namespace fused_losses::cuda {
namespace {

constexpr int kPacketBytes = 16;  // the widest access of one thread
template <class T>
constexpr int kPacketElements = kPacketBytes / static_cast<int>(sizeof(T));

// kCount elements, 4 to 16 bytes.
template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Chunk {
  using A = Accumulation<T>;
  static constexpr int kBytes = kCount * static_cast<int>(sizeof(T));
  static constexpr int kWords = kBytes / 4;
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == kPacketBytes);

  uint32_t words[kWords];

  // `k` is a constant once loops are unrolled.
  __device__ __forceinline__ A at(int k) const {
    if constexpr (kSameType<T, BFloat16>) {
      return k % 2 == 0 ? low_of_bfloat16_pair(words[k / 2]) : high_of_bfloat16_pair(words[k / 2]);
    } else if constexpr (kSameType<T, Float16>) {
      return k % 2 == 0 ? low_of_float16_pair(words[k / 2]) : high_of_float16_pair(words[k / 2]);
    } else if constexpr (sizeof(T) == 4) {
      return float_of_bits(words[k]);
    } else {
      return double_of_bits(words[2 * k], words[2 * k + 1]);
    }
  }

  // Each value rounded once.
  static __device__ __forceinline__ Chunk of(const A* values) {
    Chunk result;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (kSameType<T, BFloat16>) {
        result.words[i] = bfloat16_pair_of(values[2 * i], values[2 * i + 1]);
      } else if constexpr (kSameType<T, Float16>) {
        result.words[i] = float16_pair_of(values[2 * i], values[2 * i + 1]);
      } else if constexpr (sizeof(T) == 4) {
        result.words[i] = bits_of_float(values[i]);
      } else {
        result.words[i] = i % 2 == 0 ? low_bits_of_double(values[i / 2]) : high_bits_of_double(values[i / 2]);
      }
    }
    return result;
  }

  static __device__ __forceinline__ Chunk filled(A value) {
    A values[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = value;
    return of(values);
  }

  // All -inf, as constants: converted at run time they are not.
  static __device__ __forceinline__ Chunk lowest() {
    constexpr uint32_t kLow = sizeof(T) == 8           ? 0
                              : kSameType<T, float>    ? 0xff800000
                              : kSameType<T, BFloat16> ? 0xff80ff80
                                                       : 0xfc00fc00;
    Chunk result;
#pragma unroll
    for (int i = 0; i < kWords; ++i) result.words[i] = sizeof(T) == 8 && i % 2 == 1 ? 0xfff00000 : kLow;
    return result;
  }

  // Another value at a place that only the run knows. Every word is chosen: stored to under an `if`, the chunk moves
  // from registers to local memory.
  __device__ __forceinline__ void replace(int place, A value) {
    const Chunk values = filled(value);
    constexpr int kPerWord = sizeof(T) == 2 ? 2 : 1;
    constexpr int kWordsPerElement = sizeof(T) == 8 ? 2 : 1;
    const uint32_t kept = kPerWord == 1 ? 0 : place % 2 == 0 ? 0xffff0000u : 0x0000ffffu;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint32_t replaced = (words[i] & kept) | (values.words[i] & ~kept);
      words[i] = i / kWordsPerElement == place / kPerWord ? replaced : words[i];
    }
  }
};

template <class T>
using Packet = Chunk<T, kPacketElements<T>>;

// What is not used again soon shall not push anything else out of the caches. Hints are for global memory alone: shared
// memory is for Reuse::Soon.
enum class Reuse { Never, Soon };

template <int kBytes>
struct AccessOf;
template <>
struct AccessOf<4> {
  using Type = unsigned;
};
template <>
struct AccessOf<8> {
  using Type = uint2;
};
template <>
struct AccessOf<16> {
  using Type = uint4;
};

template <class T, int kCount>
union ChunkAccess {
  using Type = typename AccessOf<Chunk<T, kCount>::kBytes>::Type;
  Type value;
  Chunk<T, kCount> chunk;
};

// `address` aligned to the chunk's bytes.
template <class T, int kCount>
__device__ __forceinline__ Chunk<T, kCount> load_chunk(const T* address, Reuse reuse) {
  ChunkAccess<T, kCount> access;
  const auto* const from = reinterpret_cast<const typename ChunkAccess<T, kCount>::Type*>(address);
  access.value = reuse == Reuse::Soon ? *from : __ldcs(from);
  return access.chunk;
}
template <class T, int kCount>
__device__ __forceinline__ void store_chunk(T* address, const Chunk<T, kCount>& chunk, Reuse reuse = Reuse::Never) {
  ChunkAccess<T, kCount> access;
  access.chunk = chunk;
  auto* const to = reinterpret_cast<typename ChunkAccess<T, kCount>::Type*>(address);
  if (reuse == Reuse::Soon) {
    *to = access.value;
  } else {
    __stcs(to, access.value);
  }
}

template <class T>
__device__ __forceinline__ Packet<T> load_packet(const T* address, Reuse reuse) {
  return load_chunk<T, kPacketElements<T>>(address, reuse);
}
template <class T>
__device__ __forceinline__ void store_packet(T* address, const Packet<T>& packet, Reuse reuse = Reuse::Never) {
  store_chunk(address, packet, reuse);
}

// Elements between the aligned address at or below this one and this one.
template <class T>
__device__ __forceinline__ int elements_past_alignment(const T* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) % kPacketBytes / sizeof(T));
}

// The larger ones of the elements of two packets, and the largest one of a packet; of NaN and a number the number.
template <class T>
__device__ __forceinline__ Packet<T> max_of_packets(const Packet<T>& a, const Packet<T>& b) {
  Packet<T> result;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int i = 0; i < Packet<T>::kWords; ++i) {
      result.words[i] = kSameType<T, BFloat16> ? max_of_bfloat16_pairs(a.words[i], b.words[i])
                                               : max_of_float16_pairs(a.words[i], b.words[i]);
    }
  } else {
    Accumulation<T> larger[kPacketElements<T>];
#pragma unroll
    for (int k = 0; k < kPacketElements<T>; ++k) larger[k] = max_of(a.at(k), b.at(k));
    result = Packet<T>::of(larger);
  }
  return result;
}
template <class T>
__device__ __forceinline__ Accumulation<T> max_of_packet(const Packet<T>& packet) {
  if constexpr (sizeof(T) == 2) {  // pairs as long as there are any
    const auto larger = kSameType<T, BFloat16> ? max_of_bfloat16_pairs : max_of_float16_pairs;
    Packet<T> pairs = packet;
    pairs.words[0] = larger(larger(pairs.words[0], pairs.words[1]), larger(pairs.words[2], pairs.words[3]));
    return max_of(pairs.at(0), pairs.at(1));
  } else {
    Accumulation<T> result = packet.at(0);
#pragma unroll
    for (int k = 1; k < kPacketElements<T>; ++k) result = max_of(result, packet.at(k));
    return result;
  }
}

}  // namespace
}  // namespace fused_losses::cuda
