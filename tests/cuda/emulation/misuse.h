// What a kernel may not do: the launch ends with std::runtime_error, which says where and what.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>

#include "thread.h"

namespace fused_losses::emulation {

class Misuse : public std::runtime_error {
 public:
  Misuse(const Thread& thread, const std::string& what)
      : std::runtime_error("kernel misuse: block " + std::to_string(blockIdx.x) + ", thread " +
                           std::to_string(thread.index) + ": " + what) {}
};

inline std::string hexadecimal(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

inline std::string describe(const std::source_location& where) {
  const std::string path = where.file_name();
  return path.substr(path.find_last_of('/') + 1) + ":" + std::to_string(where.line());
}

// Only warp operations have a mask.
inline std::string describe(const Request& request) {
  return kCallNames[static_cast<int>(request.call)] +
         (request.mask != 0 ? " with mask " + hexadecimal(request.mask) : std::string()) + " at " +
         describe(request.where);
}

}  // namespace fused_losses::emulation
