// How a tile of positions comes from memory into the tile buffer [classes][kPositions] and goes back.
#pragma once

#include "cross_entropy_target.h"
#include "transpose.h"

namespace fused_losses::cpu {
namespace {

// Positions of a tile: runs of 512 bytes, and 64 classes of float fit the first-level cache with room for targets.
constexpr int kPositions = 128;

// A tile: positions [first, first + count) of the flattened (outer, inner) order.
struct Tile {
  int64_t first;
  int count;
};

// What the next tile will read, to be asked for while this one is computed. kLocality as __builtin_prefetch has it: 3
// for the first-level cache, 2 for the second.
template <class T, int kLocality>
struct NextTile {
  const T* start;
  int64_t class_stride;

  // Where this tile computes class c of its chunk, register v.
  void prefetch(int64_t c, int v) const { __builtin_prefetch(start + c * class_stride + v, 0, kLocality); }
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

  // Into the second-level cache: the classes may be a power of two apart, and then more of them fall into one set of
  // the first than it has ways.
  template <class T>
  NextTile<T, 2> next_tile(const T* memory, const ClassLayout& layout, int64_t first_class) const {
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
    const T* dense_end = end_of_dense_tile(memory, layout);
    int row = 0;
    if (dense_end != nullptr && num_classes_ <= Interleaving<A>::kMaxColumns) {
      for (; row + kLanes<A> <= tile_.count; row += kLanes<A>) {
        read_interleaved(memory + start_of(layout) + row * num_classes_, tile + row);
      }
    }
    for (; row < tile_.count; row += kLanes<A>) {
      const T* starts[kLanes<A>];
      const int num_rows = start_rows(memory, layout, row, starts);
      for (int64_t c = 0; c < num_classes_; c += kLanes<A>) {
        const int64_t rest = num_classes_ - c;
        const bool whole = rest >= kLanes<A> || starts[num_rows - 1] + c + kLanes<A> <= dense_end;
        if (num_rows == kLanes<A> && whole) {
          read_square<true>(starts, num_rows, c, tile + row);
        } else {
          read_square<false>(starts, num_rows, c, tile + row);
        }
      }
    }
  }

  template <class T>
  NextTile<T, 3> next_tile(const T* memory, const ClassLayout& layout, int64_t) const {
    return {memory + start_of(layout) + num_classes_ * kPositions, kPositions};
  }

  template <class T>
  void write(T* memory, const ClassLayout& layout, int64_t, int64_t, const A* tile) const {
    const T* dense_end = end_of_dense_tile<T>(memory, layout);
    int row = 0;
    if (dense_end != nullptr && num_classes_ <= Interleaving<A>::kMaxColumns) {
      for (; row + kLanes<A> <= tile_.count; row += kLanes<A>) {
        write_interleaved(memory + start_of(layout) + row * num_classes_, tile + row);
      }
    }
    const int64_t last_square = (num_classes_ - 1) / kLanes<A> * kLanes<A>;
    for (; row < tile_.count; row += kLanes<A>) {
      T* starts[kLanes<A>];
      const int num_rows = start_rows(memory, layout, row, starts);
      for (int64_t c = last_square; c >= 0; c -= kLanes<A>) {
        const int64_t rest = num_classes_ - c;
        const bool whole = rest >= kLanes<A> || starts[num_rows - 1] + c + kLanes<A> <= dense_end;
        if (num_rows == kLanes<A> && whole) {
          write_square<true>(starts, num_rows, c, tile + row);
        } else {
          write_square<false>(starts, num_rows, c, tile + row);
        }
      }
    }
  }

 private:
  // The square of classes [c, c + kLanes) and kLanes rows. kWhole: every row is read by whole registers, so that the
  // square stays in registers.
  template <bool kWhole, class T>
  FUSED_LOSSES_FLATTEN void read_square(const T* const* starts, int num_rows, int64_t c, A* tile) const {
    const int64_t rest = num_classes_ - c;
    Vec<A> square[kLanes<A>];
#pragma GCC unroll 16
    for (int r = 0; r < kLanes<A>; ++r) {
      if constexpr (kWhole) {
        square[r] = load(starts[r] + c);
      } else {
        square[r] = r >= num_rows       ? Vec<A>{}
                    : rest >= kLanes<A> ? load(starts[r] + c)
                                        : load_partial(starts[r] + c, rest, A(0));
      }
    }
    transpose<A>(square);
#pragma GCC unroll 16
    for (int k = 0; k < kLanes<A>; ++k) {
      if (k < rest) store(tile + (c + k) * kPositions, square[k]);
    }
  }

  template <bool kWhole, class T>
  FUSED_LOSSES_FLATTEN void write_square(T* const* starts, int num_rows, int64_t c, const A* tile) const {
    const int64_t rest = num_classes_ - c;
    Vec<A> square[kLanes<A>];
#pragma GCC unroll 16
    for (int k = 0; k < kLanes<A>; ++k) square[k] = load(tile + (k < rest ? c + k : c) * kPositions);
    transpose<A>(square);
#pragma GCC unroll 16
    for (int r = 0; r < kLanes<A>; ++r) {
      if constexpr (kWhole) {
        store(starts[r] + c, square[r]);
      } else {
        if (r >= num_rows) continue;
        if (rest >= kLanes<A>) {
          store(starts[r] + c, square[r]);
        } else {
          store_partial(starts[r] + c, square[r], rest);
        }
      }
    }
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

  // The end of the tile's memory where its rows follow each other without gaps, else null: nothing may spill.
  template <class T>
  const T* end_of_dense_tile(const T* memory, const ClassLayout& layout) const {
    const bool dense =
        layout.inner_stride == num_classes_ && (single_outer_ || layout.outer_stride == inner_size_ * num_classes_);
    if (!dense) return nullptr;
    return memory + start_of(layout) + tile_.count * num_classes_;
  }

  int64_t start_of(const ClassLayout& layout) const { return layout.offset(first_outer_, first_inner_); }

  template <class T>
  int start_rows(T* memory, const ClassLayout& layout, int row, T** starts) const {
    const int num_rows = tile_.count - row < kLanes<A> ? tile_.count - row : kLanes<A>;
    if (first_inner_ + row + num_rows <= inner_size_) {  // the common case: no end of the inner axis in between
      T* const start = memory + layout.offset(first_outer_, first_inner_ + row);
      for (int r = 0; r < num_rows; ++r) starts[r] = start + r * layout.inner_stride;
      return num_rows;
    }
    int64_t outer = (tile_.first + row) / inner_size_;
    int64_t inner = (tile_.first + row) % inner_size_;
    for (int r = 0; r < num_rows; ++r) {
      starts[r] = memory + layout.offset(outer, inner);
      if (++inner == inner_size_) {
        inner = 0;
        ++outer;
      }
    }
    return num_rows;
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
