// The shapes and options that reach every kernel of cross-entropy, every geometry and every tail.
#pragma once

#include "cross_entropy.h"

namespace fused_losses::kernel_checks {

// Six ways of asking for a loss.
constexpr int kNumKinds = 6;
inline void set_kind(CrossEntropyCase& test, int kind) {
  test.kind = static_cast<TargetKind>(kind / 2);
  test.weighted = kind % 2 == 1;
  test.mean = kind == 0 || kind == 4;
  test.index_type = kind % 2 == 0 ? IndexType::Int64 : test.classes < 256 ? IndexType::UInt8 : IndexType::Int32;
  test.accumulated_probability = kind == 5;
  test.label_smoothing = kind == 2 || kind == 3 || kind == 5 ? 0.1 : 0;
}

class CrossEntropyCases {
 public:
  explicit CrossEntropyCases(DType dtype) : dtype_(dtype), packet_(packet_elements(dtype)) {}

  void run() const {
    few_classes();
    ends_of_geometries();
    alignments();
    row_layouts();
    inner_axes();
  }

 private:
  static void run(CrossEntropyCase test, int kind) {
    set_kind(test, kind);
    CrossEntropyCheck(test).run();
  }

  // The longest row in which never more than so many packets lie.
  int64_t longest(int64_t packets) const { return (packets + 1) * packet_ - 1; }

  // Two blocks go round again, and the last round is short: see SMALL_GRID in sanitized_kernels.py.
  int64_t rows_for(int64_t classes) const {
    if (classes <= 32) return 257;
    if (classes <= longest(16)) return 129;
    if (classes <= longest(32)) return 65;
    if (classes <= longest(64)) return 33;
    if (classes <= longest(128)) return 17;
    return classes <= longest(256) ? 9 : 3;
  }

  void few_classes() const {
    for (const int64_t classes : {1, 2, 3, 5, 10, 17, 25, 32, 33}) {
      for (int kind = 0; kind < kNumKinds; ++kind) run({dtype_, rows_for(classes), classes}, kind);
    }
    for (const int kind : {1, 3, 5}) run({dtype_, 9, 129}, kind);
    for (const int kind : {0, 2, 4}) run({dtype_, 3, 600}, kind);
  }

  // The register kernels' geometries end at these numbers of packets, the sweep's at 8, 256, and where three rows and
  // two find room in shared memory, 6144 packets here, which is then too small for one: see kMaxDynamicSharedBytes.
  void ends_of_geometries() const {
    for (const int64_t packets : {2, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3072, 6144}) {
      CrossEntropyCase last{dtype_, rows_for(longest(packets)), longest(packets)};
      last.logits_past_alignment = last.gradient_past_alignment = packet_ - 1;
      run(last, packets % 3 == 1 ? 0 : 1);
      CrossEntropyCase next{dtype_, rows_for(longest(packets) + 1), longest(packets) + 1};
      next.logits_past_alignment = packet_ - 1;
      run(next, packets % 3 == 1 ? 1 : 0);
    }
    for (const int64_t packets : {8, 256, 600, 3072}) {
      CrossEntropyCase last{dtype_, rows_for(longest(packets)), longest(packets)};
      last.logits_past_alignment = packet_ - 1;
      run(last, 3);
      run({dtype_, rows_for(longest(packets) + 1), longest(packets) + 1}, 5);
    }
  }

  void alignments() const {
    for (int64_t past = 0; past < 8; ++past) {
      CrossEntropyCase test{dtype_, 3, past % 2 == 0 ? 33 : 10};
      test.logits_past_alignment = test.gradient_past_alignment = past;
      run(test, 0);
      run(test, 2);
      test.gradient_past_alignment = 7 - past;
      run(test, 1);
      run(test, 4);
    }
  }

  void row_layouts() const {
    CrossEntropyCase test{dtype_, 3, 21, 5};  // channels last
    run(test, 1);
    test.logits_gap = 3;
    run(test, 2);
    run(test, 5);
    CrossEntropyCase one_outer{dtype_, 1, 9, 7};  // as (N, C) comes
    one_outer.logits_gap = packet_ - 1;
    one_outer.gradient_gap = 1;
    run(one_outer, 0);
    run(one_outer, 3);
  }

  void inner_axes() const {
    for (const int64_t classes : {1, 2, 5, 8}) {
      for (const int64_t inner : {8, 12, 7}) {  // whole packets, a tail for the 16-bit types, classes not aligned
        const CrossEntropyCase test{dtype_, 2, classes, inner, false};
        for (int kind = classes % 2; kind < kNumKinds; kind += 2) run(test, kind);
      }
    }
    // More classes than a thread has in registers, in chunks of 8 bytes.
    for (const int64_t inner : {8, 7}) {
      run({dtype_, 2, 33, inner, false}, 0);
      run({dtype_, 2, 41, inner, false}, 1);
    }
    CrossEntropyCase padded{dtype_, 3, 37, packet_ + 1, false};  // chunks with a tail
    padded.logits_gap = padded.gradient_gap = packet_ - 1;
    run(padded, 1);
    run(padded, 5);
    padded.gradient_gap = 0;  // and none, as the gradient has no room for them
    run(padded, 2);
    CrossEntropyCase shifted{dtype_, 3, 34, 8, false};  // only the first of three is aligned
    shifted.outer_gap = 1;
    run(shifted, 0);
    run(shifted, 4);
    for (int64_t past = 1; past < 8; ++past) {
      CrossEntropyCase misaligned{dtype_, 1, 35, 16, false};
      misaligned.logits_past_alignment = past;
      run(misaligned, 0);
      std::swap(misaligned.logits_past_alignment, misaligned.gradient_past_alignment);
      run(misaligned, 3);
    }
    // Round again: in chunks, by single positions, and with all classes in registers.
    run({dtype_, 1, 33, 260 * packet_ / 2, false}, 0);
    CrossEntropyCase single{dtype_, 1, 33, 259, false};
    single.logits_gap = 2;
    run(single, 4);
    run(single, 0);
    single.classes = 3;
    run(single, 0);
  }

  DType dtype_;
  int64_t packet_;
};

// Terms of a row: every kernel that takes them, with one term at a time and all of them.
class CrossEntropyTermsCases {
 public:
  explicit CrossEntropyTermsCases(DType dtype) : dtype_(dtype), packet_(packet_elements(dtype)) {}

  void run() const {
    // Rows of 4 and 32 lanes and of a block, the last ones of a geometry and the first.
    for (const int64_t classes : {int64_t{1}, int64_t{5}, 9 * packet_ - 1, 9 * packet_ + 1, 257 * packet_ - 1}) {
      with_every_term({dtype_, classes < 100 ? 65 : 5, classes});
    }
    for (const int64_t packets : {300, 600, 3100}) {
      CrossEntropyCase last{dtype_, 3, packets * packet_ + 3};
      last.logits_past_alignment = packet_ - 1;
      last.logit_scale = -1.25;
      last.softcap = 3;
      last.lse_square_scale = 0.01;
      for (const int kind : {1, 3, 4}) run(last, kind);
      last.softcap = 0;
      last.focal_gamma = 1.5;
      run(last, 0);
    }
    // Images: chunks with a tail, and single positions.
    with_every_term({dtype_, 2, 7, 12, false});
    with_every_term({dtype_, 2, 10, 7, false});
  }

 private:
  static void run(CrossEntropyCase test, int kind) {
    set_kind(test, kind);
    CrossEntropyCheck(test).run();
  }

  static void with_every_term(const CrossEntropyCase& plain) {
    CrossEntropyCase test = plain;
    test.logit_scale = -0.75;
    run(test, 0);
    run(test, 3);
    test.softcap = 2;
    for (int kind = 0; kind < kNumKinds; ++kind) run(test, kind);
    test = plain;
    test.lse_square_scale = 0.02;
    for (int kind = 0; kind < kNumKinds; ++kind) run(test, kind);
    test = plain;
    test.focal_gamma = 2;
    run(test, 0);
    test.logit_scale = 1.5;
    test.softcap = 3;
    test.lse_square_scale = 0.02;
    run(test, 1);
  }

  DType dtype_;
  int64_t packet_;
};

}  // namespace fused_losses::kernel_checks
