// Memory of exactly the size that a kernel was promised, so that AddressSanitizer sees what goes past it.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>

#include "checks.h"
#include "core/element_types.h"

namespace fused_losses::kernel_checks {

enum class Format { Float32, Float64, BFloat16, Float16, Int64, Int32, UInt8 };

inline Format format_of(DType dtype) { return static_cast<Format>(dtype); }
inline Format format_of(IndexType type) { return static_cast<Format>(static_cast<int>(type) + 4); }
inline DType accumulation_of(DType dtype) { return dtype == DType::Float64 ? DType::Float64 : DType::Float32; }

inline int64_t bytes_of(Format format) {
  constexpr int64_t kBytes[] = {4, 8, 2, 2, 8, 4, 1};
  return kBytes[static_cast<int>(format)];
}

constexpr int64_t kPacketBytes = 16;
inline int64_t packet_elements(DType dtype) { return kPacketBytes / bytes_of(format_of(dtype)); }

inline const char* name_of(DType dtype) {
  constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
  return kNames[static_cast<int>(dtype)];
}

// How exact a result of this type, computed in its accumulation type, has to be.
inline Tolerance tolerance_of(DType dtype, double magnitude = 1) {
  constexpr Tolerance kTolerances[] = {{1e-5, 1e-6}, {1e-12, 1e-13}, {1.0 / 256, 1e-6}, {1.0 / 1024, 1e-6}};
  const Tolerance tolerance = kTolerances[static_cast<int>(dtype)];
  const double smallest = dtype == DType::Float16 ? 0x1p-24 : 0;  // float16 has no smaller step
  return {tolerance.relative, tolerance.absolute * std::fabs(magnitude) + smallest};
}

class Array {
 public:
  // Begins so many elements after an address that is aligned for packets. What was not written is NaN, or -1.
  Array(Format format, int64_t count, int64_t elements_past_alignment = 0)
      : format_(format), count_(count), front_bytes_(elements_past_alignment * bytes_of(format)) {
    memory_ = static_cast<unsigned char*>(::operator new(bytes(), kAlignment));
    std::memset(memory_, 0xff, bytes());
    emulation::poison(memory_, static_cast<size_t>(front_bytes_));
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() {
    emulation::unpoison(memory_, static_cast<size_t>(front_bytes_));
    expect(is_blank(memory_, front_bytes_), "a kernel wrote before the beginning of an array");
    ::operator delete(memory_, kAlignment);
  }

  int64_t count() const { return count_; }
  void* data() { return memory_ + front_bytes_; }
  const void* data() const { return memory_ + front_bytes_; }
  bool is_untouched(int64_t i) const { return is_blank(at(i), bytes_of(format_)); }

  double operator[](int64_t i) const {
    switch (format_) {
      case Format::Float32:
        return read<float>(i);
      case Format::Float64:
        return read<double>(i);
      case Format::BFloat16: {
        const uint32_t bits = static_cast<uint32_t>(read<uint16_t>(i)) << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
      }
      case Format::Float16:
        return static_cast<float>(read<_Float16>(i));
      case Format::Int64:
        return static_cast<double>(read<int64_t>(i));
      case Format::Int32:
        return read<int32_t>(i);
      case Format::UInt8:
        return read<uint8_t>(i);
    }
    __builtin_unreachable();
  }

  // To the nearest value, but of bfloat16, which is cut.
  void set(int64_t i, double value) {
    switch (format_) {
      case Format::Float32:
        return write(i, static_cast<float>(value));
      case Format::Float64:
        return write(i, value);
      case Format::BFloat16: {
        const float single = static_cast<float>(value);
        uint32_t bits;
        std::memcpy(&bits, &single, sizeof bits);
        return write(i, static_cast<uint16_t>(bits >> 16));
      }
      case Format::Float16:
        return write(i, static_cast<_Float16>(static_cast<float>(value)));
      case Format::Int64:
        return write(i, static_cast<int64_t>(value));
      case Format::Int32:
        return write(i, static_cast<int32_t>(value));
      case Format::UInt8:
        return write(i, static_cast<uint8_t>(value));
    }
  }

 private:
  static constexpr std::align_val_t kAlignment{kPacketBytes};

  static bool is_blank(const unsigned char* memory, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      if (memory[i] != 0xff) return false;
    }
    return true;
  }

  size_t bytes() const { return static_cast<size_t>(front_bytes_ + count_ * bytes_of(format_)); }
  unsigned char* at(int64_t i) const { return memory_ + front_bytes_ + i * bytes_of(format_); }

  template <class T>
  T read(int64_t i) const {
    T value;
    std::memcpy(&value, at(i), sizeof value);
    return value;
  }
  template <class T>
  void write(int64_t i, T value) {
    std::memcpy(at(i), &value, sizeof value);
  }

  Format format_;
  int64_t count_;
  int64_t front_bytes_;
  unsigned char* memory_;
};

// A single number on the "device".
class Scalar : public Array {
 public:
  Scalar(DType dtype, double value) : Array(format_of(dtype), 1) { set(0, value); }
  explicit Scalar(DType dtype) : Array(format_of(dtype), 1) {}
};

}  // namespace fused_losses::kernel_checks
