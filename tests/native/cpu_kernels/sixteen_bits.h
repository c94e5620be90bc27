// The conversions of the 16-bit types: every value read, and the rounding of values between them.
#pragma once

#include <bit>
#include <cmath>
#include <string>

#include "cpu/capability.h"
#include "cuda/emulation/kernels/array.h"
#include "cuda/emulation/kernels/random.h"

namespace fused_losses::kernel_checks {

constexpr cpu::UnitTransform kCopy{1, 0};

// Bits, since the sign of a zero and the kind of a NaN count.
inline void expect_bits(const char* what, int64_t i, uint32_t got, uint32_t expected) {
  if (got == expected) return;
  char text[160];
  std::snprintf(text, sizeof text, "%s[%lld] is %#x, not %#x", what, static_cast<long long>(i), got, expected);
  expect(false, text);
}

inline uint16_t rounded(DType dtype, float value) {
  if (dtype == DType::Float16) return std::bit_cast<uint16_t>(static_cast<_Float16>(value));
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t below = bits & 0xffff;
  const uint32_t cut = bits >> 16;
  return static_cast<uint16_t>(below > 0x8000 || (below == 0x8000 && cut % 2 == 1) ? cut + 1 : cut);
}

// All values at every alignment that a packet can have.
inline void check_reading(DType dtype) {
  constexpr int64_t kValues = 65536;
  for (const int64_t past : {0, 1, 3}) {
    current_case = std::string(name_of(dtype)) + " read, past alignment=" + std::to_string(past);
    Array values(format_of(dtype), kValues, past);
    Array widened(Format::Float32, kValues, past);
    auto* const bits = static_cast<uint16_t*>(values.data());
    for (int64_t i = 0; i < kValues; ++i) bits[i] = static_cast<uint16_t>(i);
    cpu::kernels().logit_units(kCopy, dtype, values.data(), widened.data(), nullptr, kValues);
    for (int64_t i = 0; i < kValues; ++i) {
      if (std::isnan(values[i])) {
        expect(std::isnan(widened[i]), "a NaN became a number");
      } else {
        expect_bits("value", i, std::bit_cast<uint32_t>(static_cast<float>(widened[i])),
                    std::bit_cast<uint32_t>(static_cast<float>(values[i])));
      }
    }
  }
}

// Random bits, and the neighbourhood of each tie and of each end of the range.
inline void check_rounding(DType dtype) {
  current_case = std::string(name_of(dtype)) + " rounded";
  constexpr int64_t kRandom = 200000;
  constexpr int64_t kTies = 65536 * 3;
  Array values(Format::Float32, kRandom + kTies);
  Array results(format_of(dtype), values.count());
  emulation::SplitMix64 random(5);
  const int dropped_bits = dtype == DType::Float16 ? 13 : 16;
  auto* const bits = static_cast<uint32_t*>(values.data());
  for (int64_t i = 0; i < kRandom; ++i) bits[i] = static_cast<uint32_t>(random() >> 32);
  for (int64_t i = 0; i < kTies; ++i) {
    const uint32_t tie =
        (static_cast<uint32_t>(random() >> 32) >> dropped_bits << dropped_bits) | 1u << (dropped_bits - 1);
    bits[kRandom + i] = tie + static_cast<uint32_t>(i % 3) - 1;
  }
  // float16's largest number, the tie above it, its smallest ones and the ties between them.
  const float ends[] = {65504, 65519.996f, 65520, 65536, 0x1p-24f, 0x1p-25f, 0x1.000002p-25f, 0x1.8p-24f, 0x1p-14f, 0};
  for (size_t i = 0; i < std::size(ends); ++i) bits[i] = std::bit_cast<uint32_t>(i % 2 == 0 ? ends[i] : -ends[i]);
  cpu::kernels().logit_gradient(kCopy, dtype, nullptr, values.data(), results.data(), values.count());
  const auto* const got = static_cast<const uint16_t*>(results.data());
  for (int64_t i = 0; i < values.count(); ++i) {
    const float value = std::bit_cast<float>(bits[i]);
    if (std::isnan(value)) {
      expect(std::isnan(results[i]), "a NaN became a number");
    } else {
      expect_bits("rounded", i, got[i], rounded(dtype, value));
    }
  }
}

inline void check_sixteen_bits(DType dtype) {
  if (dtype != DType::BFloat16 && dtype != DType::Float16) return;
  check_reading(dtype);
  check_rounding(dtype);
}

}  // namespace fused_losses::kernel_checks
