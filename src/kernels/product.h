// Matrix products with feature maps: 1x1 convolutions, and dense convolutions with few input channels.
//
// A feature map (N, C, H, W) is a matrix with a row per channel and a column per image and position. Columns of several
// images go into the same panel, so that small maps fill the vectors. A panel is a copy of kColumns columns, row by
// row. It is read once for each block of kRows output rows, whose sums stay in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "norm.h"
#include "pool.h"
#include "vector.h"

namespace {

// The sums of a tile are kRows * kWide vectors. With those of a panel's row and one weight they fill the registers: 32
// with AVX-512, 16 with AVX2.
constexpr int kRows = kLanes == 16 ? 8 : 4, kWide = 3;
constexpr int64_t kColumns = kWide * kLanes;
constexpr int64_t kCacheFloats = 48 << 10;  // 192 KiB, less than the second-level cache of any recent CPU
constexpr int64_t kLongRow = 512;           // positions of a map from which on its channels are read one after another
constexpr int64_t kFewColumns = 400;        // columns of a product up to which its weights are not packed
constexpr int64_t kChunk = 144;  // columns of a step of the weights' gradient: 3 panels of AVX-512 or 6 of AVX2

// A run of columns in one image: `at` is its position in the first row.
struct Run {
  int64_t at, column, count;
};

// Channels of a feature map as the rows of a matrix.
template <class Float>
struct Channels {
  Float *data;
  int64_t channel, image, size;  // floats from channel to channel, from image to image; positions of an image
  bool past_cache = false;       // whether to write past the caches

  Channels from_image(int64_t n) const { return {data + n * image, channel, image, size, past_cache}; }
  Float *plane(int64_t n, int64_t c) const { return data + n * image + c * channel; }

  // Calls body(run) for each run of columns in [from, from + count).
  template <class Body>
  void for_runs(int64_t from, int64_t count, Body body) const {
    for (int64_t column = 0; column < count;) {
      const int64_t n = (from + column) / size, position = (from + column) % size;
      const int64_t length = std::min(count - column, size - position);
      body(Run{n * image + position, column, length});
      column += length;
    }
  }

  // Writes `rows` rows of the columns [from, from + count) to panels of `panel_rows` rows.
  void pack(int64_t rows, int64_t from, int64_t count, float *panels, int64_t panel_rows) const {
    if (size >= kLongRow) return pack_long(rows, from, count, panels, panel_rows);
    for (int64_t column = 0; column < count; column += kColumns) {
      for_runs(from + column, std::min(kColumns, count - column), [&](Run run) {
        float *to = panels + column * panel_rows + run.column;
        sweep(run.count, [&](int64_t i, auto part) {
          for (int64_t r = 0; r < rows; r++)
            put(to + r * kColumns + i, get(data + run.at + r * channel + i, part), part);
        });
      });
    }
  }

 private:
  // The same for runs as long as a panel's row. Each channel is read in one go, which the CPU prefetches.
  void pack_long(int64_t rows, int64_t from, int64_t count, float *panels, int64_t panel_rows) const {
    for_runs(from, count, [&](Run run) {
      for (int64_t r = 0; r < rows; r++) {
        const float *source = data + run.at + r * channel;
        for (int64_t i = 0; i < run.count;) {
          const int64_t column = run.column + i, place = column % kColumns;
          const int64_t length = std::min(kColumns - place, run.count - i);
          float *to = panels + ((column - place) * panel_rows + r * kColumns + place);
          if (length == kColumns) {
            for (int v = 0; v < kWide; v++) store(to + v * kLanes, load(source + i + v * kLanes));
          } else {
            copy(source + i, to, length);
          }
          i += length;
        }
      }
    });
  }
};

// The weights of a product: blocks of kRows output rows. The element (row, column) of the matrix is
// weight[row * row_stride + column * column_stride].
//
// The blocks are packed in the order in which tiles read them, column by column. With few columns of feature maps, such
// as those of a single image, packing would take longer than it saves; then only an incomplete last block is packed.
class Weights {
 public:
  Weights(const float *weight, int64_t rows, int64_t columns, int64_t row_stride, int64_t column_stride,
          int64_t product_columns)
      : weight_(weight), rows_(rows), columns_(columns), row_stride_(row_stride), column_stride_(column_stride) {
    first_packed_ = product_columns > kFewColumns ? 0 : rows / kRows;
    packed_.resize((blocks() - first_packed_) * columns * kRows);
    parallel(blocks() - first_packed_, [&](int64_t i) { pack(first_packed_ + i); });
  }

  // The same for weights that a BatchNorm with moving statistics and an activation follow, which are applied to the
  // sums.
  Weights(const float *weight, int64_t rows, int64_t columns, const NormInputs &norm, int64_t first_channel,
          int64_t product_columns)
      : Weights(weight, rows, columns, columns, 1, product_columns) {
    for (int64_t row = 0; row < rows; row++) {
      const Norm own = norm.with_moving_statistics(first_channel + row);
      scales_.push_back(own.scale());
      shifts_.push_back(own.shift());
    }
    scales_.resize(blocks() * kRows);
    shifts_.resize(blocks() * kRows);
    activation_ = norm.activation;
  }

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  int64_t blocks() const { return (rows_ + kRows - 1) / kRows; }

  // The elements of a block: its rows lie next to each other if it is packed, and row_stride() apart otherwise.
  bool packed(int64_t block) const { return block >= first_packed_; }
  const float *block(int64_t i) const {
    return packed(i) ? packed_.data() + (i - first_packed_) * columns_ * kRows : weight_ + i * kRows * row_stride_;
  }
  int64_t row_stride() const { return row_stride_; }
  int64_t column_stride() const { return column_stride_; }

  // Applies norm and activation to the sums of a block.
  template <int R, int W>
  void finish(int64_t block, Vec (&sums)[R][W]) const {
    if (shifts_.empty()) return;
    with_activation(activation_, [&](auto kind) {
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const Vec scale = all(scales_[block * kRows + r]), shift = all(shifts_[block * kRows + r]);
#pragma GCC unroll 3
        for (int v = 0; v < W; v++) sums[r][v] = activate<kind.value>(sums[r][v] * scale + shift);
      }
    });
  }

 private:
  void pack(int64_t block) {
    float *to = packed_.data() + (block - first_packed_) * columns_ * kRows;
    for (int64_t r = 0; r < std::min<int64_t>(kRows, rows_ - block * kRows); r++) {
      const float *from = weight_ + (block * kRows + r) * row_stride_;
      for (int64_t c = 0; c < columns_; c++) to[c * kRows + r] = from[c * column_stride_];
    }
  }

  const float *weight_;
  int64_t rows_, columns_, row_stride_, column_stride_, first_packed_;
  std::vector<float> packed_, scales_, shifts_;
  int activation_ = kNone;
};

// sums[r][v] += over k: a[k * a_step + r * a_row] * the vector v of b[k * kColumns].
template <int R, int W>
inline void accumulate(const float *a, int64_t a_step, int64_t a_row, const float *b, int64_t depth,
                       Vec (&sums)[R][W]) {
  for (int64_t k = 0; k < depth; k++, a += a_step, b += kColumns) {
    Vec row[W];
#pragma GCC unroll 3
    for (int v = 0; v < W; v++) row[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Vec factor = all(a[r * a_row]);
#pragma GCC unroll 3
      for (int v = 0; v < W; v++) sums[r][v] += factor * row[v];
    }
  }
}

// Calls body(R, W) with the constants for a tile of `rows` rows and `columns` columns.
template <class Body>
inline void with_tile(int64_t rows, int64_t columns, Body body) {
  const auto with_rows = [&](auto wide) {
    if (rows > kRows / 2) return body(std::integral_constant<int, kRows>{}, wide);
    return body(std::integral_constant<int, kRows / 2>{}, wide);
  };
  if (columns > 2 * kLanes) return with_rows(std::integral_constant<int, 3>{});
  if (columns > kLanes) return with_rows(std::integral_constant<int, 2>{});
  return with_rows(std::integral_constant<int, 1>{});
}

// Multiplies a block of the weights with the panel of columns [from, from + count), and writes the rows to `target`.
template <class Past>
void multiply_panel(const Weights &weights, int64_t block, const float *panel, int64_t from, int64_t count,
                    const Channels<float> &target, Past past) {
  const int64_t rows = std::min<int64_t>(kRows, weights.rows() - block * kRows);
  float *to = target.data + block * kRows * target.channel;
  with_tile(rows, count, [&](auto r, auto w) {
    constexpr int R = r.value, W = w.value;
    Vec sums[R][W] = {};
    const float *own = weights.block(block);
    if (weights.packed(block)) {
      accumulate<R, W>(own, kRows, 1, panel, weights.columns(), sums);
    } else {
      accumulate<R, W>(own, weights.column_stride(), weights.row_stride(), panel, weights.columns(), sums);
    }
    weights.finish(block, sums);
    const int64_t n = from / target.size, position = from % target.size;
    if (position + count <= target.size && count == kColumns && rows == R) {
      to += n * target.image + position;
#pragma GCC unroll 8
      for (int i = 0; i < R; i++)
#pragma GCC unroll 3
        for (int v = 0; v < W; v++)
          put(past, to + i * target.channel + v * kLanes, sums[i][v], std::integral_constant<int64_t, kLanes>{});
      return;
    }
    alignas(64) float tile[kRows * kColumns];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 3
      for (int v = 0; v < W; v++) store(tile + i * kColumns + v * kLanes, sums[i][v]);
    target.for_runs(from, count, [&](Run run) {
      sweep(run.count, [&](int64_t i, auto part) {
        for (int64_t row = 0; row < rows; row++)
          put(to + run.at + row * target.channel + i, get(tile + row * kColumns + run.column + i, part), part);
      });
    });
  });
}

// Multiplies blocks [first, last) of the weights with the panels of the columns [from, to), which have `panel_rows`
// rows. A block of the weights may come from a farther cache than the panels, so it is read once for all of them.
void multiply_panels(const Weights &weights, int64_t first, int64_t last, const float *panels, int64_t panel_rows,
                     int64_t from, int64_t to, const Channels<float> &target) {
  with_past_cache(target.past_cache, [&](auto past) {
    for (int64_t block = first; block < last; block++)
      for (int64_t at = from; at < to; at += kColumns)
        multiply_panel(weights, block, panels + (at - from) * panel_rows, at, std::min(kColumns, to - at), target,
                       past);
  });
}

// target = weights * source, where both have `columns` columns. Several threads compute it.
template <class Source>
void multiply(const Weights &weights, const Source &source, const Channels<float> &target, int64_t columns) {
  // The panels of a chunk fit into the second-level cache. Long chunks read and write long pieces of each channel.
  const int64_t tasks = 4 * Pool::instance().threads(), fitting = kCacheFloats / weights.columns();
  const int64_t chunk = round_up(std::max<int64_t>(1, std::min(fitting, columns / tasks)), kColumns);
  const int64_t chunks = (columns + chunk - 1) / chunk;
  // With few columns, such as those of a single image, the threads also share the rows.
  const int64_t parts = std::min(weights.blocks(), (tasks / 2 + chunks - 1) / chunks);
  parallel(chunks * parts, [&](int64_t task) {
    const int64_t from = task / parts * chunk, to = std::min(columns, from + chunk), part = task % parts;
    float *panels = scratch(kPanelSlot, weights.columns() * chunk);
    source.pack(weights.columns(), from, to - from, panels, weights.columns());
    const int64_t first = part * weights.blocks() / parts, last = (part + 1) * weights.blocks() / parts;
    multiply_panels(weights, first, last, panels, weights.columns(), from, to, target);
  });
}

// Sums of products of the rows of two matrices over their columns: partial[a][b] += sum over columns of
// broadcast[a][column] * transposed[b][column]. Both are given as panels.
class RowProducts {
 public:
  RowProducts(int64_t broadcast_rows, int64_t transposed_rows)
      : rows_(round_up(broadcast_rows, kRows)), others_(transposed_rows), stride_(round_up(transposed_rows, kLanes)) {}

  int64_t size() const { return rows_ * stride_; }
  int64_t stride() const { return stride_; }
  int64_t blocks() const { return rows_ / kRows; }

  // Adds the products of blocks [first_block, last_block) of kRows rows of `broadcast`, for `count` columns. The panels
  // of `broadcast` have `panel_rows` rows, those of `others` have `other_rows`.
  void add(const float *broadcast, int64_t panel_rows, int64_t first_block, int64_t last_block, const float *others,
           int64_t other_rows, int64_t count, float *partial) const {
    float *transposed = scratch(kTransposedSlot, kColumns * kChunk);
    for (int64_t first = 0; first < others_; first += kColumns) {
      const int64_t wide = std::min(kColumns, stride_ - first);
      transpose_rows(others, other_rows, first, wide, count, transposed);
      for (int64_t row = first_block * kRows; row < last_block * kRows; row += kRows) {
        with_tile(kRows, wide, [&](auto, auto w) {
          constexpr int W = w.value;
          float *to = partial + row * stride_ + first;
          Vec sums[kRows][W];
#pragma GCC unroll 8
          for (int r = 0; r < kRows; r++)
#pragma GCC unroll 3
            for (int v = 0; v < W; v++) sums[r][v] = load(to + r * stride_ + v * kLanes);
          for (int64_t column = 0; column < count; column += kColumns)
            accumulate<kRows, W>(broadcast + column * panel_rows + row * kColumns, 1, kColumns,
                                 transposed + column * kColumns, std::min(kColumns, count - column), sums);
#pragma GCC unroll 8
          for (int r = 0; r < kRows; r++)
#pragma GCC unroll 3
            for (int v = 0; v < W; v++) store(to + r * stride_ + v * kLanes, sums[r][v]);
        });
      }
    }
  }

 private:
  // Writes rows [first, first + wide) of the panels as columns: transposed[column * kColumns + row].
  void transpose_rows(const float *panels, int64_t panel_rows, int64_t first, int64_t wide, int64_t count,
                      float *transposed) const {
    for (int64_t column = 0; column < count; column += kLanes) {
      const float *panel = panels + column / kColumns * panel_rows * kColumns + column % kColumns;
      for (int64_t row = 0; row < wide; row += kLanes) {
        Vec square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++)
          square[i] = first + row + i < others_ ? load(panel + (first + row + i) * kColumns) : Vec{};
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; i++) store(transposed + (column + i) * kColumns + row, square[i]);
      }
    }
  }

  int64_t rows_, others_, stride_;
};

// Sets the rows that fill the last block of kRows rows of panels to 0.
inline void clear_added_rows(float *panels, int64_t rows, int64_t panel_rows, int64_t columns) {
  for (int64_t column = 0; column < columns; column += kColumns) {
    float *panel = panels + column * panel_rows;
    std::fill(panel + rows * kColumns, panel + panel_rows * kColumns, 0.0f);
  }
}

// The gradients of y = weights * x. The columns are divided into slices, whose sums are added at the end. A slice
// depends on the shapes only, and so does the order of the sums. With few slices, the threads also share the rows.
template <class Source>
void multiply_backward(const Weights *transposed_weights, const Source &x, int64_t in, const Channels<const float> &dy,
                       int64_t out, const Channels<float> &dx, int64_t columns, float *dweight) {
  const bool swapped = out < in;  // the matrix with fewer rows is transposed
  const RowProducts products(swapped ? in : out, swapped ? out : in);
  const int64_t chunks = (columns + kChunk - 1) / kChunk, size = products.size();
  const int64_t out_rows = round_up(out, kRows), in_rows = round_up(in, kRows);
  // Long pieces of each channel are packed at a time, as far as they fit into the second-level cache.
  const int64_t at_once = std::max<int64_t>(1, 2 * kCacheFloats / ((out_rows + in_rows) * kChunk));
  const int64_t slices =
      std::min((chunks + 1) / 2, std::min<int64_t>(32, std::max<int64_t>(4, (int64_t{2} << 20) / size)));
  const int64_t parts = std::min((2 * Pool::instance().threads() + slices - 1) / slices, products.blocks());
  float *partial = scratch(kPartialSlot, slices * size);
  parallel(slices * parts, [&](int64_t task) {
    const int64_t slice = task / parts, part = task % parts;
    const int64_t first = part * products.blocks() / parts, last = (part + 1) * products.blocks() / parts;
    float *dy_panels = scratch(kPanelSlot, out_rows * at_once * kChunk);
    float *x_panels = scratch(kOtherPanelSlot, in_rows * at_once * kChunk);
    clear_added_rows(dy_panels, out, out_rows, at_once * kChunk);
    clear_added_rows(x_panels, in, in_rows, at_once * kChunk);
    float *own = partial + slice * size;
    std::fill(own + first * kRows * products.stride(), own + last * kRows * products.stride(), 0.0f);
    const int64_t end = std::min(columns, (slice + 1) * chunks / slices * kChunk);
    for (int64_t from = slice * chunks / slices * kChunk; from < end; from += at_once * kChunk) {
      const int64_t to = std::min(end, from + at_once * kChunk);
      dy.pack(out, from, to - from, dy_panels, out_rows);
      x.pack(in, from, to - from, x_panels, in_rows);
      if (transposed_weights) {
        const int64_t blocks = transposed_weights->blocks();
        multiply_panels(*transposed_weights, part * blocks / parts, (part + 1) * blocks / parts, dy_panels, out_rows,
                        from, to, dx);
      }
      for (int64_t at = 0; at < to - from; at += kChunk) {
        const int64_t count = std::min(kChunk, to - from - at);
        if (swapped) {
          products.add(x_panels + at * in_rows, in_rows, first, last, dy_panels + at * out_rows, out_rows, count, own);
        } else {
          products.add(dy_panels + at * out_rows, out_rows, first, last, x_panels + at * in_rows, in_rows, count, own);
        }
      }
    }
  });
  parallel(swapped ? in : out, [&](int64_t row) {
    sweep(swapped ? out : in, [&](int64_t column, auto count) {
      Vec total{};
      for (int64_t s = 0; s < slices; s++) total += load(partial + s * size + row * products.stride() + column);
      if (!swapped) return put(dweight + row * in + column, total, count);
      for (int64_t lane = 0; lane < count; lane++) dweight[(column + lane) * in + row] = total[lane];
    });
  });
}

struct Pointwise {
  int64_t batch, in_channels, out_channels, groups, size, in, out;  // in, out: channels per group

  Pointwise(const int64_t *x, const int64_t *weight)
      : batch(x[0]), in_channels(x[1]), out_channels(weight[0]), size(x[2] * x[3]) {
    in = weight[1];
    groups = in_channels / in;
    out = out_channels / groups;
  }

  int64_t columns() const { return batch * size; }

  // The channels of group `g` of a feature map with `channels` channels in all groups.
  template <class Float>
  Channels<Float> group(Float *map, int64_t channels, int64_t g) const {
    const bool past_cache = goes_past_cache(map, size, batch * channels * size);
    return {map + g * (channels / groups) * size, size, channels * size, size, past_cache};
  }
};

// A dense convolution with few input channels. Its matrix has a row per input channel and tap, and a column per image
// and output position.
template <class Float>
struct Patches {
  Float *images;
  int64_t channels, height, width, kernel, stride, padding, out_height, out_width;

  int64_t rows() const { return channels * kernel * kernel; }
  int64_t out_size() const { return out_height * out_width; }

  // Calls body(row, at, column, begin, end, length) for each row of the matrix and each output row that the columns
  // [from, from + count) touch. `length` columns from `column` on belong to the output row. Those from `begin` to `end`
  // correspond to positions of `images` from `at` on, `stride` apart; the others are outside the image.
  template <class Body>
  void visit(int64_t from, int64_t count, Body body) const {
    for (int64_t column = 0; column < count;) {
      const int64_t n = (from + column) / out_size(), position = (from + column) % out_size();
      const int64_t oy = position / out_width, ox = position % out_width;
      const int64_t length = std::min(count - column, out_width - ox);
      int64_t row = 0;
      for (int64_t c = 0; c < channels; c++)
        for (int64_t ky = 0; ky < kernel; ky++) {
          const int64_t y = oy * stride + ky - padding;
          for (int64_t kx = 0; kx < kernel; kx++, row++) {
            // The first and the last output of the row for which this tap is inside the image.
            const int64_t first = std::max<int64_t>(0, (padding - kx + stride - 1) / stride);
            const int64_t last = width - 1 + padding - kx < 0 ? -1 : (width - 1 + padding - kx) / stride;
            const int64_t begin = std::min(length, std::max<int64_t>(0, first - ox));
            const int64_t end = y < 0 || y >= height ? begin : std::max(begin, std::min(length, last + 1 - ox));
            const int64_t at = ((n * channels + c) * height + y) * width + (ox + begin) * stride + kx - padding;
            body(row, at, column, begin, end, length);
          }
        }
      column += length;
    }
  }

  void pack(int64_t, int64_t from, int64_t count, float *panels, int64_t panel_rows) const {
    for (int64_t i = 0; i < count; i += kColumns)
      pack_panel(from + i, std::min(kColumns, count - i), panels + i * panel_rows);
  }

  void pack_panel(int64_t from, int64_t count, float *panel) const {
    visit(from, count, [&](int64_t row, int64_t at, int64_t column, int64_t begin, int64_t end, int64_t length) {
      float *to = panel + row * kColumns + column;
      std::fill(to, to + begin, 0.0f);
      if (stride == 1) {
        copy(images + at, to + begin, end - begin);
      } else {
        sweep(end - begin, [&](int64_t i, auto part) {
          // The elements 0, 2, ... are among the first 2 * part - 1.
          const float *from = images + at + 2 * i;
          const int64_t count = 2 * part - 1, first = std::min<int64_t>(count, kLanes);
          Vec even = get(from, first), odd = get(from + kLanes, count - first);
          deal(even, odd);
          put(to + begin + i, even, part);
        });
      }
      std::fill(to + end, to + length, 0.0f);
    });
  }

  // Adds the panel's elements to the positions of the images from which `pack` reads.
  void unpack(int64_t from, int64_t count, const float *panel) const {
    visit(from, count, [&](int64_t row, int64_t at, int64_t column, int64_t begin, int64_t end, int64_t) {
      const float *own = panel + row * kColumns + column;
      for (int64_t i = begin; i < end; i++) images[at + (i - begin) * stride] += own[i];
    });
  }
};

}  // namespace
