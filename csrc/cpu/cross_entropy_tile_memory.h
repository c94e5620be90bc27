// How a tile of positions comes from memory into the tile buffer [classes][kPositions] and goes back.
#pragma once

#include "cross_entropy_positions.h"
#include "transpose.h"

namespace fused_losses::cpu {
namespace {

// Memory that will be wanted soon, to be asked for while this tile is computed: the next tile's logits, or this tile's
// gradient. kLocality as __builtin_prefetch has it: 3 for the first-level cache, 2 for the second.
template <class T, bool kToWrite, int kLocality>
struct TileLines {
  const T* start;
  int64_t class_stride;

  // Where this tile computes class c of its chunk, register v.
  void prefetch(int64_t c, int v) const { __builtin_prefetch(start + c * class_stride + v, kToWrite, kLocality); }
};

// Classes strided, inner axis contiguous, as in (N, C, H, W): a class of the tile is one or more runs of memory.
class InnerRuns {
 public:
  explicit InnerRuns(const CrossEntropyParams& params) : inner_size_(params.inner_size) {}

  void start(Tile tile) {
    num_runs_ = 0;
    int64_t outer = tile.first / inner_size_;
    int64_t inner = tile.first % inner_size_;
    for (int start = 0; start < tile.count; ++outer, inner = 0) {
      const int64_t available = inner_size_ - inner;
      const int length = available < tile.count - start ? static_cast<int>(available) : tile.count - start;
      runs_[num_runs_++] = {outer, inner, start, length};
      start += length;
    }
  }

  template <class T>
  void read(const T* memory, const ClassLayout& layout, int64_t first_class, int64_t num_classes,
            Accumulation<T>* tile) const {
    using A = Accumulation<T>;
    for (int64_t c = 0; c < num_classes; ++c) {
      for (int r = 0; r < num_runs_; ++r) {
        const Run& run = runs_[r];
        const T* source = memory + layout.offset(run.outer, run.inner) + (first_class + c) * layout.class_stride;
        A* destination = tile + c * kPositions + run.start;
        int i = 0;
        for (; i + kLanes<A> <= run.length; i += kLanes<A>) store(destination + i, load(source + i));
        if (i < run.length) {
          store_partial(destination + i, load_partial(source + i, run.length - i, A(0)), run.length - i);
        }
      }
    }
  }

  template <class T>
  TileLines<T, true, 2> this_tile(const T* memory, const ClassLayout& layout, int64_t first_class) const {
    const Run& run = runs_[0];
    return {memory + layout.offset(run.outer, run.inner) + first_class * layout.class_stride, layout.class_stride};
  }

  // Into the second-level cache: the classes may be a power of two apart, and then more of them fall into one set of
  // the first than it has ways.
  template <class T>
  TileLines<T, false, 2> next_tile(const T* memory, const ClassLayout& layout, int64_t first_class) const {
    const Run& run = runs_[num_runs_ - 1];
    const int64_t offset = layout.offset(run.outer, run.inner) + run.length + first_class * layout.class_stride;
    return {memory + offset, layout.class_stride};
  }

  template <class T>
  void write(T* memory, const ClassLayout& layout, int64_t first_class, int64_t num_classes,
             const Accumulation<T>* tile) const {
    using A = Accumulation<T>;
    for (int64_t c = 0; c < num_classes; ++c) {
      for (int r = 0; r < num_runs_; ++r) {
        const Run& run = runs_[r];
        T* destination = memory + layout.offset(run.outer, run.inner) + (first_class + c) * layout.class_stride;
        const A* source = tile + c * kPositions + run.start;
        int i = 0;
        for (; i + kLanes<A> <= run.length; i += kLanes<A>) store(destination + i, load(source + i));
        if (i < run.length) {
          store_partial(destination + i, load_partial(source + i, run.length - i, A(0)), run.length - i);
        }
      }
    }
  }

 private:
  struct Run {
    int64_t outer;
    int64_t inner;
    int start;
    int length;
  };
  int64_t inner_size_;
  Run runs_[kPositions];
  int num_runs_ = 0;
};

// Classes contiguous and few: squares of rows and classes are transposed in registers.
//
// Note [Spilling registers]
// Where the rows lie densely behind each other a whole register may be read or written although the row ends inside it:
// what it spills over belongs to the next rows, which this tile writes afterwards. Rows are therefore stored in
// ascending order and, within a group of rows, the last classes first. The end of the tile is never crossed, since
// another thread may own what lies behind it.
//
// Note [Interleaved columns]
// Up to kLanes / 2 classes the square would be mostly padding. There kLanes rows are read as they lie in memory, as
// many registers as there are classes, and every class is picked out of them by permutations.
template <class A>
class TransposedRows {
 public:
  explicit TransposedRows(const CrossEntropyParams& params)
      : num_classes_(params.num_classes),
        inner_size_(params.inner_size),
        single_outer_(params.num_positions == params.inner_size),
        interleaving_(params.num_classes) {}

  void start(Tile tile) {
    tile_ = tile;
    first_outer_ = tile.first / inner_size_;
    first_inner_ = tile.first - first_outer_ * inner_size_;
  }

  template <class T>
  void read(const T* memory, const ClassLayout& layout, int64_t, int64_t, A* tile) const {
    for_each_square(
        memory, layout, [&](const T* source, int row) { read_interleaved(source, tile + row); },
        [&](const auto& rows, int row, int64_t c) { read_square(rows, c, tile + row); });
  }

  template <class T>
  TileLines<T, true, 3> this_tile(const T* memory, const ClassLayout& layout, int64_t) const {
    return {memory + layout.offset(first_outer_, first_inner_), kPositions};
  }

  template <class T>
  TileLines<T, false, 3> next_tile(const T* memory, const ClassLayout& layout, int64_t) const {
    return {memory + layout.offset(first_outer_, first_inner_) + num_classes_ * kPositions, kPositions};
  }

  template <class T>
  void write(T* memory, const ClassLayout& layout, int64_t, int64_t, const A* tile) const {
    for_each_square(
        memory, layout, [&](T* destination, int row) { write_interleaved(destination, tile + row); },
        [&](const auto& rows, int row, int64_t c) { write_square(rows, c, tile + row); });
  }

 private:
  // kLanes rows, every one of which is read or written by whole registers, so that their square stays in registers.
  template <class T>
  struct WholeRows {
    T* start;
    int64_t stride;
  };

  // Any others, fewer than kLanes at the end of a tile.
  template <class T>
  struct AnyRows {
    T* starts[kLanes<A>];
    int count;
  };

  // Calls interleaved(memory, row) for kLanes rows of few classes, otherwise square(rows, row, c) for every kLanes
  // classes from c on: see Note [Spilling registers] for the order.
  template <class T, class Interleaved, class Square>
  void for_each_square(T* memory, const ClassLayout& layout, const Interleaved& interleaved,
                       const Square& square) const {
    T* const start = memory + layout.offset(first_outer_, first_inner_);
    const bool dense =
        layout.inner_stride == num_classes_ && (single_outer_ || layout.outer_stride == inner_size_ * num_classes_);
    int row = 0;
    if (dense && num_classes_ <= Interleaving<A>::kMaxColumns) {
      for (; row + kLanes<A> <= tile_.count; row += kLanes<A>) interleaved(start + row * num_classes_, row);
    }
    for (; row < tile_.count; row += kLanes<A>) {
      const WholeRows<T> rows{start + row * layout.inner_stride, layout.inner_stride};
      const bool evenly_spaced = dense || first_inner_ + row + kLanes<A> <= inner_size_;
      // From the start of the last row to the end of what may be touched.
      const int64_t available = dense ? (tile_.count - row - kLanes<A> + 1) * num_classes_ : num_classes_;
      const int64_t whole_classes = row + kLanes<A> <= tile_.count && evenly_spaced ? available : 0;
      for (int64_t c = (num_classes_ - 1) / kLanes<A> * kLanes<A>; c >= 0; c -= kLanes<A>) {
        if (c + kLanes<A> <= whole_classes) {
          square(rows, row, c);
        } else {
          square(any_rows(memory, layout, row), row, c);
        }
      }
    }
  }

  template <class T>
  AnyRows<T> any_rows(T* memory, const ClassLayout& layout, int row) const {
    AnyRows<T> rows;
    rows.count = tile_.count - row < kLanes<A> ? tile_.count - row : kLanes<A>;
    int64_t outer = (tile_.first + row) / inner_size_;
    int64_t inner = (tile_.first + row) % inner_size_;
    for (int r = 0; r < rows.count; ++r) {
      rows.starts[r] = memory + layout.offset(outer, inner);
      if (++inner == inner_size_) {
        inner = 0;
        ++outer;
      }
    }
    return rows;
  }

  template <class T>
  static Vec<A> load_row(const WholeRows<T>& rows, int r, int64_t c, int64_t) {
    return load(rows.start + r * rows.stride + c);
  }
  template <class T>
  static Vec<A> load_row(const AnyRows<T>& rows, int r, int64_t c, int64_t rest) {
    if (r >= rows.count) return Vec<A>{};
    return rest >= kLanes<A> ? load(rows.starts[r] + c) : load_partial(rows.starts[r] + c, rest, A(0));
  }
  template <class T>
  static void store_row(const WholeRows<T>& rows, int r, int64_t c, int64_t, Vec<A> value) {
    store(rows.start + r * rows.stride + c, value);
  }
  template <class T>
  static void store_row(const AnyRows<T>& rows, int r, int64_t c, int64_t rest, Vec<A> value) {
    if (r >= rows.count) return;
    if (rest >= kLanes<A>) {
      store(rows.starts[r] + c, value);
    } else {
      store_partial(rows.starts[r] + c, value, rest);
    }
  }

  // The square of classes [c, c + kLanes) and kLanes rows.
  template <class Rows>
  FUSED_LOSSES_FLATTEN void read_square(const Rows& rows, int64_t c, A* tile) const {
    const int64_t rest = num_classes_ - c;
    Vec<A> square[kLanes<A>];
#pragma GCC unroll 16
    for (int r = 0; r < kLanes<A>; ++r) square[r] = load_row(rows, r, c, rest);
    transpose<A>(square);
#pragma GCC unroll 16
    for (int k = 0; k < kLanes<A>; ++k) {
      if (k < rest) store(tile + (c + k) * kPositions, square[k]);
    }
  }

  template <class Rows>
  FUSED_LOSSES_FLATTEN void write_square(const Rows& rows, int64_t c, const A* tile) const {
    const int64_t rest = num_classes_ - c;
    Vec<A> square[kLanes<A>];
#pragma GCC unroll 16
    for (int k = 0; k < kLanes<A>; ++k) square[k] = load(tile + (k < rest ? c + k : c) * kPositions);
    transpose<A>(square);
#pragma GCC unroll 16
    for (int r = 0; r < kLanes<A>; ++r) store_row(rows, r, c, rest, square[r]);
  }

  template <class T>
  void read_interleaved(const T* source, A* tile) const {
    by_columns([&](auto columns) {
      constexpr int kColumns = decltype(columns)::value;
      Vec<A> registers[kColumns];
      Vec<A> classes[kColumns];
      for (int i = 0; i < kColumns; ++i) registers[i] = load(source + i * kLanes<A>);
      interleaving_.template split<kColumns>(registers, classes);
      for (int i = 0; i < kColumns; ++i) store(tile + i * kPositions, classes[i]);
    });
  }

  template <class T>
  void write_interleaved(T* destination, const A* tile) const {
    by_columns([&](auto columns) {
      constexpr int kColumns = decltype(columns)::value;
      Vec<A> registers[kColumns];
      Vec<A> classes[kColumns];
      for (int i = 0; i < kColumns; ++i) classes[i] = load(tile + i * kPositions);
      interleaving_.template join<kColumns>(classes, registers);
      for (int i = 0; i < kColumns; ++i) store(destination + i * kLanes<A>, registers[i]);
    });
  }

  template <int kValue>
  struct Columns {
    static constexpr int value = kValue;
  };

  template <int kColumns = 1, class Visit>
  void by_columns(const Visit& visit) const {
    if (num_classes_ == kColumns) {
      visit(Columns<kColumns>{});
    } else if constexpr (kColumns < Interleaving<A>::kMaxColumns) {
      by_columns<kColumns + 1>(visit);
    }
  }

  int64_t num_classes_;
  int64_t inner_size_;
  bool single_outer_;
  Tile tile_{};
  int64_t first_outer_ = 0;
  int64_t first_inner_ = 0;
  Interleaving<A> interleaving_;
};

}  // namespace
}  // namespace fused_losses::cpu
