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

// Classes strided, inner axis contiguous, as in (N, C, H, W): a class of the tile is one or more runs of memory.
class InnerRuns {
 public:
  InnerRuns(const CrossEntropyParams& params, Tile tile) {
    int64_t outer = tile.first / params.inner_size;
    int64_t inner = tile.first % params.inner_size;
    for (int start = 0; start < tile.count; ++outer, inner = 0) {
      const int64_t available = params.inner_size - inner;
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

  // Asks for what the next tile will read where this one reads class c, register v.
  template <class T>
  void prefetch_next(const T* memory, const ClassLayout& layout, int64_t c, int v) const {
    const Run& run = runs_[num_runs_ - 1];
    __builtin_prefetch(memory + layout.offset(run.outer, run.inner) + run.length + c * layout.class_stride + v);
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
class TransposedRows {
 public:
  TransposedRows(const CrossEntropyParams& params, Tile tile)
      : params_(params),
        tile_(tile),
        first_outer_(tile.first / params.inner_size),
        first_inner_(tile.first % params.inner_size) {}

  template <class T>
  void read(const T* memory, const ClassLayout& layout, int64_t, int64_t num_classes, Accumulation<T>* tile) const {
    using A = Accumulation<T>;
    const T* dense_end = end_of_dense_tile(memory, layout);
    for (int row = 0; row < tile_.count; row += kLanes<A>) {
      const T* starts[kLanes<A>];
      const int num_rows = start_rows(memory, layout, row, starts);
      for (int64_t c = 0; c < num_classes; c += kLanes<A>) {
        const int64_t rest = num_classes - c;
        Vec<A> square[kLanes<A>] = {};
        for (int r = 0; r < num_rows; ++r) {
          const T* source = starts[r] + c;
          square[r] =
              rest >= kLanes<A> || source + kLanes<A> <= dense_end ? load(source) : load_partial(source, rest, A(0));
        }
        transpose<A>(square);
        const int64_t used = rest < kLanes<A> ? rest : kLanes<A>;
        for (int64_t k = 0; k < used; ++k) store(tile + (c + k) * kPositions + row, square[k]);
      }
    }
  }

  template <class T>
  void prefetch_next(const T* memory, const ClassLayout& layout, int64_t c, int v) const {
    __builtin_prefetch(memory + start_of(layout) + (params_.num_classes + c) * kPositions + v);
  }

  template <class T>
  void write(T* memory, const ClassLayout& layout, int64_t, int64_t num_classes, const Accumulation<T>* tile) const {
    using A = Accumulation<T>;
    const T* dense_end = end_of_dense_tile<T>(memory, layout);
    const int64_t last_square = (num_classes - 1) / kLanes<A> * kLanes<A>;
    for (int row = 0; row < tile_.count; row += kLanes<A>) {
      T* starts[kLanes<A>];
      const int num_rows = start_rows(memory, layout, row, starts);
      for (int64_t c = last_square; c >= 0; c -= kLanes<A>) {
        const int64_t rest = num_classes - c;
        Vec<A> square[kLanes<A>] = {};
        const int64_t used = rest < kLanes<A> ? rest : kLanes<A>;
        for (int64_t k = 0; k < used; ++k) square[k] = load(tile + (c + k) * kPositions + row);
        transpose<A>(square);
        for (int r = 0; r < num_rows; ++r) {
          T* destination = starts[r] + c;
          if (rest >= kLanes<A> || destination + kLanes<A> <= dense_end) {
            store(destination, square[r]);
          } else {
            store_partial(destination, square[r], rest);
          }
        }
      }
    }
  }

 private:
  // The end of the tile's memory where its rows follow each other without gaps, else null: nothing may spill.
  template <class T>
  const T* end_of_dense_tile(const T* memory, const ClassLayout& layout) const {
    const bool dense =
        layout.inner_stride == params_.num_classes && (params_.num_positions == params_.inner_size ||
                                                       layout.outer_stride == params_.inner_size * params_.num_classes);
    if (!dense) return nullptr;
    return memory + start_of(layout) + tile_.count * params_.num_classes;
  }

  int64_t start_of(const ClassLayout& layout) const { return layout.offset(first_outer_, first_inner_); }

  template <class T>
  int start_rows(T* memory, const ClassLayout& layout, int row, T** starts) const {
    constexpr int kRows = kLanes<Accumulation<T>>;
    const int num_rows = tile_.count - row < kRows ? tile_.count - row : kRows;
    int64_t outer = (tile_.first + row) / params_.inner_size;
    int64_t inner = (tile_.first + row) % params_.inner_size;
    for (int r = 0; r < num_rows; ++r) {
      starts[r] = memory + layout.offset(outer, inner);
      if (++inner == params_.inner_size) {
        inner = 0;
        ++outer;
      }
    }
    return num_rows;
  }

  const CrossEntropyParams& params_;
  Tile tile_;
  int64_t first_outer_;
  int64_t first_inner_;
};

}  // namespace
}  // namespace fused_losses::cpu
