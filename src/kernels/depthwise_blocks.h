// Depthwise convolution of small feature maps: a block of kLanes channels at once, a channel per lane.
//
// The vectors of a small plane would be half empty, and each plane would end with sums over lanes. Here a block is
// transposed into working memory, a vector per image and position, so that vectors are full whatever the plane's size.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "depthwise.h"
#include "norm.h"
#include "pool.h"
#include "vector.h"

namespace {

constexpr int64_t kLargestBlock = 256;  // positions of the largest input plane that is computed by blocks

// BatchNorm with activation, a channel per lane.
struct NormLanes {
  Vec scale{}, shift{}, mean{}, inverse{};
  int activation = kNone;

  void set(int64_t lane, const Norm &norm) {
    scale[lane] = norm.scale();
    shift[lane] = norm.shift();
    mean[lane] = norm.mean;
    inverse[lane] = norm.inverse;
    activation = norm.activation;
  }
};

// Calls body(i) for each of `count` vectors, and flush() at least every kExact vectors and at the end.
template <class Body, class Flush>
inline void in_groups(int64_t count, Body body, Flush flush) {
  for (int64_t i = 0; i < count;) {
    const int64_t end = std::min(count, i + kExact);
    for (; i < end; i++) body(i);
    flush();
  }
}

// The channels of a block, and where their planes are.
struct Block {
  const Depthwise &op;
  int64_t first, count;     // channels
  int64_t sources[kLanes];  // channel of the input for each lane; of the first lane for lanes without a channel

  Block(const Depthwise &op, int64_t index)
      : op(op), first(index * kLanes), count(std::min(kLanes, op.channels - first)) {
    for (int64_t l = 0; l < kLanes; l++) sources[l] = op.source(l < count ? first + l : first);
  }

  // Reads a plane of each channel into `size` vectors.
  template <class Plane>
  void read(int64_t size, Plane plane, float *to) const {
    sweep(size, [&](int64_t i, auto part) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; l++) square[l] = get(plane(l < count ? l : 0) + i, part);
      transpose(square);
      for (int64_t j = 0; j < part; j++) store(to + (i + j) * kLanes, square[j]);
    });
  }

  // Writes `size` vectors as a plane of each channel.
  template <class Plane>
  void write(const float *from, int64_t size, Plane plane) const {
    sweep(size, [&](int64_t i, auto part) {
      Vec square[kLanes];
      for (int64_t j = 0; j < kLanes; j++) square[j] = j < part ? load(from + (i + j) * kLanes) : Vec{};
      transpose(square);
      for (int64_t l = 0; l < count; l++) put(plane(l) + i, square[l], part);
    });
  }
};

// Planes with a border of zeros, a vector per position.
struct PaddedBlock {
  int64_t height, width, pad;

  int64_t row() const { return (width + 2 * pad) * kLanes; }
  int64_t size() const { return (height + 2 * pad) * row(); }

  // Calls body(i) -> Vec for each position and stores the result.
  template <class Body>
  void fill(float *to, Body body) const {
    for (int64_t y = 0; y < height; y++) {
      float *at = to + (y + pad) * row() + pad * kLanes;
      for (int64_t x = 0; x < width; x++) store(at + x * kLanes, body(y * width + x));
    }
  }
};

// Statistics of each lane of `count` vectors; lane l is channel channels[l].
template <class Finish>
inline NormLanes normalise(const float *x, int64_t count, bool batch_statistics, int64_t lanes, Finish finish) {
  Vec shift = load(x), s{}, q{};
  Wide totals, squares;
  if (batch_statistics)
    in_groups(
        count,
        [&](int64_t i) {
          const Vec d = load(x + i * kLanes) - shift;
          s += d;
          q += d * d;
        },
        [&] {
          totals.add(s);
          squares.add(q);
          s = q = Vec{};
        });
  NormLanes result;
  for (int64_t l = 0; l < lanes; l++)
    result.set(l, finish(l, statistics_of(shift[l], totals.lanes[l], squares.lanes[l], static_cast<double>(count))));
  return result;
}

// The gradient of a norm: replaces dy by the gradient of the activation's input, and returns the sums over its lanes.
struct NormLanesGradient {
  Wide sum_g, sum_gx;

  void add(const NormLanes &norm, const float *x, float *dy, int64_t count) {
    Vec s{}, q{};
    with_activation(norm.activation, [&](auto kind) {
      in_groups(
          count,
          [&](int64_t i) {
            const Vec value = load(x + i * kLanes);
            const Vec g = load(dy + i * kLanes) * slope<kind.value>(value * norm.scale + norm.shift);
            store(dy + i * kLanes, g);
            s += g;
            q += g * (value - norm.mean);
          },
          [&] {
            sum_g.add(s);
            sum_gx.add(q);
            s = q = Vec{};
          });
    });
  }

  NormInputGradient input_gradient(const NormLanes &norm, double count, bool batch_statistics) const {
    NormInputGradient gradient;
    gradient.scale = norm.scale;
    gradient.mean = norm.mean;
    gradient.offset = gradient.factor = Vec{};
    if (batch_statistics)
      for (int64_t l = 0; l < kLanes; l++) {
        gradient.offset[l] = static_cast<float>(sum_g.lanes[l] / count);
        gradient.factor[l] = static_cast<float>(sum_gx.lanes[l] / count * norm.inverse[l] * norm.inverse[l]);
      }
    return gradient;
  }
};

// out[y][x] = sum over ky, kx of w[ky][kx] * in[y * S + ky][x * S + kx].
template <int K, int S>
void convolve_block(const PaddedBlock &layout, const float *in, const Vec *w, float *out, int64_t height,
                    int64_t width) {
  for (int64_t y = 0; y < height; y++)
    for (int64_t x = 0; x < width; x++) {
      const float *window = in + y * S * layout.row() + x * S * kLanes;
      Vec total{};
#pragma GCC unroll 8
      for (int ky = 0; ky < K; ky++)
#pragma GCC unroll 8
        for (int kx = 0; kx < K; kx++) total += w[ky * K + kx] * load(window + ky * layout.row() + kx * kLanes);
      store(out + (y * width + x) * kLanes, total);
    }
}

// The gradient of the convolution's input at stride 2; d has a border of K / 2 zeros.
template <int K>
void spread_block(const PaddedBlock &layout, const float *d, const Vec *w, float *dx, int64_t height, int64_t width) {
  constexpr int64_t pad = K / 2;
  for (int64_t y = 0; y < height; y++)
    for (int64_t x = 0; x < width; x++) {
      Vec total{};
      // The output at oy used this row with the tap ky = y + pad - 2 * oy.
      for (int64_t ky = (y + pad) % 2; ky < K; ky += 2)
        for (int64_t kx = (x + pad) % 2; kx < K; kx += 2)
          total += w[ky * K + kx] *
                   load(d + ((y + pad - ky) / 2 + pad) * layout.row() + ((x + pad - kx) / 2 + pad) * kLanes);
      store(dx + (y * width + x) * kLanes, total);
    }
}

// dw[ky][kx] += sum over y, x of d[y][x] * in[y * S + ky][x * S + kx]; d has a border of K / 2.
template <int K, int S>
void correlate_block(const PaddedBlock &layout, const float *in, const PaddedBlock &d_layout, const float *d, Vec *dw) {
  constexpr int kAtOnce = K == 3 ? 3 : kLanes == 16 ? 5 : 1;  // number of kernel rows whose sums fit into the registers
  for (int from = 0; from < K; from += kAtOnce) {
    Vec sums[kAtOnce][K];
    for (int i = 0; i < kAtOnce; i++)
      for (int kx = 0; kx < K; kx++) sums[i][kx] = dw[(from + i) * K + kx];
    for (int64_t y = 0; y < d_layout.height; y++)
      for (int64_t x = 0; x < d_layout.width; x++) {
        const Vec v = load(d + (y + K / 2) * d_layout.row() + (x + K / 2) * kLanes);
        const float *window = in + (y * S + from) * layout.row() + x * S * kLanes;
#pragma GCC unroll 8
        for (int i = 0; i < kAtOnce; i++)
#pragma GCC unroll 8
          for (int kx = 0; kx < K; kx++) sums[i][kx] += v * load(window + i * layout.row() + kx * kLanes);
      }
    for (int i = 0; i < kAtOnce; i++)
      for (int kx = 0; kx < K; kx++) dw[(from + i) * K + kx] = sums[i][kx];
  }
}

template <int K>
void read_weights(const Block &block, const float *weight, Vec *w) {
  for (int tap = 0; tap < K * K; tap++)
    for (int64_t l = 0; l < kLanes; l++) w[tap][l] = l < block.count ? weight[(block.first + l) * K * K + tap] : 0.0f;
}

template <int K, int S>
void forward_block(const DepthwiseForward &args, int64_t index) {
  const Depthwise &op = args.op;
  const Block block(op, index);
  const int64_t in_size = op.in_size(), out_size = op.out_size();
  float *x = scratch(kInputSlot, op.batch * in_size * kLanes),
        *out = scratch(kOutputSlot, op.batch * out_size * kLanes);
  for (int64_t n = 0; n < op.batch; n++)
    block.read(
        in_size, [&](int64_t l) { return args.x + (n * op.channels + block.sources[l]) * in_size; },
        x + n * in_size * kLanes);
  NormLanes before;
  if (args.first.present)
    before = normalise(x, op.batch * in_size, args.first.batch_statistics, block.count,
                       [&](int64_t l, const Statistics &statistics) {
                         return args.first.finish(block.sources[l], statistics, args.first_mean, args.first_inverse);
                       });
  Vec w[K * K];
  read_weights<K>(block, args.weight, w);
  const PaddedBlock layout{op.height, op.width, K / 2};
  float *padded = scratch(kGradientSlot, layout.size());
  std::fill(padded, padded + layout.size(), 0.0f);
  for (int64_t n = 0; n < op.batch; n++) {
    float *own = x + n * in_size * kLanes;
    if (args.first.present)
      with_activation(before.activation, [&](auto kind) {
        for (int64_t i = 0; i < in_size; i++)
          store(own + i * kLanes, activate<kind.value>(load(own + i * kLanes) * before.scale + before.shift));
      });
    if (op.keep) block.write(own, in_size, [&](int64_t l) { return args.z + op.kept_at(n, block.first + l); });
    layout.fill(padded, [&](int64_t i) { return load(own + i * kLanes); });
    convolve_block<K, S>(layout, padded, w, out + n * out_size * kLanes, op.out_height, op.out_width);
  }
  NormLanes after;
  if (args.second.present) {
    after = normalise(out, op.batch * out_size, args.second.batch_statistics, block.count,
                      [&](int64_t l, const Statistics &statistics) {
                        return args.second.finish(block.first + l, statistics, args.second_mean, args.second_inverse);
                      });
    with_activation(after.activation, [&](auto kind) {
      for (int64_t i = 0; i < op.batch * out_size; i++)
        store(out + i * kLanes, activate<kind.value>(load(out + i * kLanes) * after.scale + after.shift));
    });
  }
  for (int64_t n = 0; n < op.batch; n++)
    block.write(out + n * out_size * kLanes, out_size,
                [&](int64_t l) { return args.z + op.out_at(n, block.first + l); });
}

template <int K, int S>
void backward_block(const DepthwiseBackward &args, int64_t index) {
  const Depthwise &op = args.op;
  const Block block(op, index);
  constexpr int64_t pad = K / 2, taps = K * K;
  const int64_t in_size = op.in_size(), out_size = op.out_size(), ins = op.batch * in_size, outs = op.batch * out_size;
  const PaddedBlock layout{op.height, op.width, pad}, d_layout{op.out_height, op.out_width, pad};
  float *x = scratch(kInputSlot, ins * kLanes), *d = scratch(kGradientSlot, outs * kLanes);
  float *convolved = scratch(kOutputSlot, outs * kLanes), *dx = scratch(kRestSlot, ins * kLanes);
  float *padded = scratch(kTileSlot, layout.size() + d_layout.size() + in_size * kLanes);
  float *d_padded = padded + layout.size(), *direct = d_padded + d_layout.size();
  std::fill(padded, direct, 0.0f);
  Vec w[taps], flipped[taps];
  read_weights<K>(block, args.weight, w);
  // Not std::reverse_copy: as a template argument, Vec loses its alignment of a single float.
  for (int tap = 0; tap < taps; tap++) flipped[tap] = w[taps - 1 - tap];
  NormLanes before, after;
  for (int64_t l = 0; l < block.count; l++) {
    if (args.first.present) before.set(l, args.first.channel(block.sources[l]));
    if (args.second.present) after.set(l, args.second.channel(block.first + l));
  }
  for (int64_t n = 0; n < op.batch; n++) {
    block.read(
        in_size, [&](int64_t l) { return args.x + (n * op.channels + block.sources[l]) * in_size; },
        x + n * in_size * kLanes);
    block.read(out_size, [&](int64_t l) { return args.dz + op.out_at(n, block.first + l); }, d + n * out_size * kLanes);
  }
  const auto lay_out_input = [&](int64_t n) {
    const float *own = x + n * in_size * kLanes;
    if (!args.first.present) return layout.fill(padded, [&](int64_t i) { return load(own + i * kLanes); });
    with_activation(before.activation, [&](auto kind) {
      layout.fill(padded, [&](int64_t i) {
        return activate<kind.value>(load(own + i * kLanes) * before.scale + before.shift);
      });
    });
  };
  NormLanesGradient after_sums, before_sums;
  NormInputGradient through_norm;
  if (args.second.present) {
    for (int64_t n = 0; n < op.batch; n++) {
      lay_out_input(n);
      convolve_block<K, S>(layout, padded, w, convolved + n * out_size * kLanes, op.out_height, op.out_width);
    }
    after_sums.add(after, convolved, d, outs);
    through_norm = after_sums.input_gradient(after, static_cast<double>(outs), args.second.batch_statistics);
  }
  Wide dw[taps];
  Vec recent[taps] = {};
  for (int64_t n = 0; n < op.batch; n++) {
    // d_padded is the gradient of the convolution's output.
    const float *g = d + n * out_size * kLanes, *value = convolved + n * out_size * kLanes;
    if (args.second.present) {
      d_layout.fill(d_padded, [&](int64_t i) { return through_norm(load(value + i * kLanes), load(g + i * kLanes)); });
    } else {
      d_layout.fill(d_padded, [&](int64_t i) { return load(g + i * kLanes); });
    }
    lay_out_input(n);
    correlate_block<K, S>(layout, padded, d_layout, d_padded, recent);
    if ((n + 1) % (1 + kExact / out_size) == 0 || n + 1 == op.batch)
      for (int64_t tap = 0; tap < taps; tap++) {
        dw[tap].add(recent[tap]);
        recent[tap] = Vec{};
      }
    float *own = dx + n * in_size * kLanes;
    if constexpr (S == 1) {
      convolve_block<K, 1>(d_layout, d_padded, flipped, own, op.height, op.width);
    } else {
      spread_block<K>(d_layout, d_padded, w, own, op.height, op.width);
    }
    if (op.keep) {
      block.read(in_size, [&](int64_t l) { return args.dz + op.kept_at(n, block.first + l); }, direct);
      for (int64_t i = 0; i < in_size; i++) store(own + i * kLanes, load(own + i * kLanes) + load(direct + i * kLanes));
    }
  }
  if (args.first.present) {
    before_sums.add(before, x, dx, ins);
    const NormInputGradient gradient =
        before_sums.input_gradient(before, static_cast<double>(ins), args.first.batch_statistics);
    for (int64_t i = 0; i < ins; i++) store(dx + i * kLanes, gradient(load(x + i * kLanes), load(dx + i * kLanes)));
  }
  for (int64_t n = 0; n < op.batch; n++)
    block.write(dx + n * in_size * kLanes, in_size,
                [&](int64_t l) { return args.dx + (n * op.channels + block.sources[l]) * in_size; });
  for (int64_t l = 0; l < block.count; l++) {
    const int64_t c = block.first + l, source = block.sources[l];
    for (int64_t tap = 0; tap < taps; tap++) args.dweight[c * taps + tap] = static_cast<float>(dw[tap].lanes[l]);
    if (args.second.present) {
      args.second_dgamma[c] = static_cast<float>(after_sums.sum_gx.lanes[l] * after.inverse[l]);
      args.second_dbeta[c] = static_cast<float>(after_sums.sum_g.lanes[l]);
    }
    if (args.first.present) {
      args.first_dgamma[source] = static_cast<float>(before_sums.sum_gx.lanes[l] * before.inverse[l]);
      args.first_dbeta[source] = static_cast<float>(before_sums.sum_g.lanes[l]);
    }
  }
}

// Whether a depthwise convolution is computed by blocks of channels. On larger maps, transposing costs more than it
// saves.
bool in_blocks(const Depthwise &op) { return op.channels > 1 && op.in_size() <= kLargestBlock; }

void run(const DepthwiseForward &args) {
  if (!in_blocks(args.op)) return parallel(args.op.channels, [&](int64_t c) { forward_channel(args, c); });
  with_kernel(args.op.kernel, args.op.stride, [&](auto kernel, auto stride) {
    parallel(args.op.blocks(), [&](int64_t block) { forward_block<kernel.value, stride.value>(args, block); });
  });
}

void run(const DepthwiseBackward &args) {
  with_kernel(args.op.kernel, args.op.stride, [&](auto kernel, auto stride) {
    if (in_blocks(args.op)) {
      parallel(args.op.blocks(), [&](int64_t block) { backward_block<kernel.value, stride.value>(args, block); });
    } else {
      parallel(args.op.channels, [&](int64_t c) { backward_channel<kernel.value, stride.value>(args, c); });
    }
  });
}

}  // namespace
