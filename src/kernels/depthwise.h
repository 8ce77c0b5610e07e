// Depthwise convolution of planes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "norm.h"
#include "pool.h"
#include "settings.h"
#include "vector.h"

namespace {

// Layout of a padded input plane in working memory. At stride 2, even and odd columns are stored separately, so that
// neighbouring outputs read neighbouring elements.
struct Padded {
  int64_t height, width, pad, stride;
  int64_t row;  // floats per row; at stride 2, per row of even or odd columns

  Padded(int64_t height, int64_t width, int64_t pad, int64_t stride)
      : height(height), width(width), pad(pad), stride(stride) {
    row = round_up((width + 2 * pad + stride - 1) / stride, kLanes) + 2 * kLanes;
  }

  int64_t rows() const { return height + 2 * pad; }
  int64_t size() const { return rows() * row * stride; }
  // The position of column `kx` of row `y`.
  int64_t at(int64_t y, int64_t kx) const { return stride == 1 ? y * row + kx : (y * 2 + kx % 2) * row + kx / 2; }

  // Writes value(position in the plane, count) -> Vec for each vector of the plane. The caller has filled the borders.
  template <class Value>
  void fill(float *to, Value value) const {
    for (int64_t y = 0; y < height; y++) {
      float *row = to + at(y + pad, pad);
      if (stride == 1) {
        sweep(width, [&](int64_t x, auto count) { put(row + x, value(y * width + x, count), count); });
        continue;
      }
      float *other = to + at(y + pad, pad + 1);
      sweep_pairs(width, [&](int64_t x, auto first, auto second) {
        Vec even = value(y * width + x, first), odd = value(y * width + x + kLanes, second);
        deal(even, odd);
        const int64_t count = first + second;
        put(row + x / 2, even, (count + 1) / 2);
        put(other + x / 2, odd, count / 2);
      });
    }
  }

  void copy_in(float *to, const float *plane) const {
    fill(to, [&](int64_t i, auto count) { return get(plane + i, count); });
  }

  // Copies a plane back out of the layout; for stride 2 only.
  void copy_out(const float *from, float *plane) const {
    for (int64_t y = 0; y < height; y++) {
      sweep_pairs(width, [&](int64_t x, auto first, auto second) {
        Vec even = load(from + at(y + pad, pad) + x / 2), odd = load(from + at(y + pad, pad + 1) + x / 2);
        merge(even, odd);
        put(plane + y * width + x, even, first);
        if (second > 0) put(plane + y * width + x + kLanes, odd, second);
      });
    }
  }
};

// Computes R output rows: out[r][x] = sum over ky, kx of w[ky][kx] * in[r * stride + ky][x * stride + kx].
template <int K, int S, int R>
inline void convolve_rows(const Padded &layout, const float *in, const float *w, float *out, int64_t width) {
  sweep(width, [&](int64_t x, auto count) {
    Vec sums[R] = {};
#pragma GCC unroll 16
    for (int i = 0; i < S * (R - 1) + K; i++) {
#pragma GCC unroll 8
      for (int kx = 0; kx < K; kx++) {
        const Vec v = load(in + (S == 1 ? i * layout.row + kx : (i * 2 + kx % 2) * layout.row + kx / 2) + x);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          const int ky = i - S * r;
          if (ky >= 0 && ky < K) sums[r] += v * w[ky * K + kx];
        }
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) put(out + r * width + x, sums[r], count);
  });
}

template <int K, int S>
void convolve(const Padded &layout, const float *in, const float *w, float *out, int64_t height, int64_t width) {
  constexpr int R = S == 1 ? 4 : 2;
  int64_t y = 0;
  for (; y + R <= height; y += R) convolve_rows<K, S, R>(layout, in + layout.at(y * S, 0), w, out + y * width, width);
  for (; y < height; y++) convolve_rows<K, S, 1>(layout, in + layout.at(y * S, 0), w, out + y * width, width);
}

// dw[ky][kx] += sum over y, x of d[y][x] * in[y * stride + ky][x * stride + kx]. d has a border of zeros.
template <int K, int S>
void correlate(const Padded &layout, const float *in, const Padded &d_layout, const float *d, Wide *dw) {
  constexpr int kAtOnce = K == 3 ? 3 : 1;  // number of kernel rows whose sums fit into the registers
  for (int from = 0; from < K; from += kAtOnce) {
    Vec sums[kAtOnce][K] = {};
    for (int64_t y = 0; y < d_layout.height; y++) {
      for (int64_t x = 0; x < d_layout.width; x += kLanes) {
        const Vec v = load(d + d_layout.at(y + K / 2, K / 2) + x);
#pragma GCC unroll 4
        for (int i = 0; i < kAtOnce; i++) {
          const float *row = in + layout.at(y * S + from + i, 0) + x;
#pragma GCC unroll 8
          for (int kx = 0; kx < K; kx++) sums[i][kx] += v * load(row + (S == 1 ? kx : (kx % 2) * layout.row + kx / 2));
        }
      }
    }
    for (int i = 0; i < kAtOnce; i++)
      for (int kx = 0; kx < K; kx++) dw[(from + i) * K + kx].add(sums[i][kx]);
  }
}

// The gradient of the convolution's input at stride 2: dx[y][x] = sum over the taps (ky, kx) of w[ky][kx] times the
// element of d for which the tap was at (y, x). d has a border of K / 2 zeros.
template <int K>
void spread(const Padded &d_layout, const float *d, const float *w, float *dx, int64_t height, int64_t width) {
  constexpr int pad = K / 2;
  for (int64_t y = 0; y < height; y++) {
    const int first_tap = static_cast<int>((y + pad) % 2);
    sweep_pairs(width, [&](int64_t x, auto first, auto second) {
      Vec even{}, odd{};
      for (int ky = first_tap; ky < K; ky += 2) {
        const float *row = d + d_layout.at((y + pad - ky) / 2 + pad, 0) + x / 2;
#pragma GCC unroll 8
        for (int kx = 0; kx < K; kx++) {
          // The column x + i, with i even or odd, is that of the output (x + i + pad - kx) / 2.
          const int i = (pad + kx) % 2;
          Vec &total = i == 0 ? even : odd;
          total += w[ky * K + kx] * load(row + (i + pad - kx) / 2 + pad);
        }
      }
      merge(even, odd);
      put(dx + y * width + x, even, first);
      if (second > 0) put(dx + y * width + x + kLanes, odd, second);
    });
  }
}

template <class Body>
inline void with_kernel(int64_t kernel, int64_t stride, Body body) {
  using std::integral_constant;
  if (kernel == 3 && stride == 1) return body(integral_constant<int, 3>{}, integral_constant<int, 1>{});
  if (kernel == 3) return body(integral_constant<int, 3>{}, integral_constant<int, 2>{});
  if (stride == 1) return body(integral_constant<int, 5>{}, integral_constant<int, 1>{});
  return body(integral_constant<int, 5>{}, integral_constant<int, 2>{});
}

struct Depthwise {
  int64_t batch, channels, height, width, kernel, stride, out_height, out_width;
  bool keep;     // the output starts with the convolution's input, as in GhostNet's modules
  int64_t runs;  // number of groups of the channel shuffle of the input, as in ShuffleNetV1; 1: no shuffle

  Depthwise(const int64_t *in, const int64_t *weight, const DepthwiseSettings &settings)
      : batch(in[0]), channels(in[1]), height(in[2]), width(in[3]), kernel(weight[2]) {
    stride = static_cast<int64_t>(settings.stride);
    keep = settings.keep != 0;
    runs = static_cast<int64_t>(settings.shuffle_groups);
    out_height = (height - 1) / stride + 1;
    out_width = (width - 1) / stride + 1;
  }

  // A convolution of maps with other channels than `in` has, without shuffle.
  Depthwise(const int64_t *in, int64_t channels, int64_t kernel, int64_t stride)
      : batch(in[0]),
        channels(channels),
        height(in[2]),
        width(in[3]),
        kernel(kernel),
        stride(stride),
        keep(false),
        runs(1) {
    out_height = (height - 1) / stride + 1;
    out_width = (width - 1) / stride + 1;
  }

  int64_t out_channels() const { return keep ? 2 * channels : channels; }
  // Channels of the parameters of a norm; a norm that does not exist has parameters with one element.
  int64_t norm_channels(const NormSettings &norm) const { return norm.present != 0 ? channels : 1; }
  int64_t in_size() const { return height * width; }
  int64_t out_size() const { return out_height * out_width; }
  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
  int64_t source(int64_t c) const { return c % runs * (channels / runs) + c / runs; }
  int64_t in_at(int64_t n, int64_t c) const { return (n * channels + source(c)) * in_size(); }
  int64_t out_at(int64_t n, int64_t c) const {
    return (keep ? n * 2 * channels + channels + c : n * channels + c) * out_size();
  }
  int64_t kept_at(int64_t n, int64_t c) const { return (n * 2 * channels + c) * out_size(); }
};

struct DepthwiseForward {
  Depthwise op;
  const float *x, *weight;
  NormInputs first, second;
  float *z, *first_mean, *first_inverse, *second_mean, *second_inverse;
};

struct DepthwiseBackward {
  Depthwise op;
  const float *x, *dz, *weight;
  NormValues first, second;
  float *dx, *first_dgamma, *first_dbeta, *dweight, *second_dgamma, *second_dbeta;
};

// ---------------------------------------------------------------------------------------- one channel at a time

// Writes a plane, normalised if `present`, to the layout.
void lay_out(const Padded &layout, bool present, const Norm &norm, const float *plane, float *to) {
  if (!present) return layout.copy_in(to, plane);
  const Vec a = all(norm.scale()), b = all(norm.shift());
  with_activation(norm.activation, [&](auto kind) {
    layout.fill(to, [&](int64_t i, auto count) { return activate<kind.value>(get(plane + i, count) * a + b); });
  });
}

void forward_channel(const DepthwiseForward &args, int64_t c) {
  const Depthwise &op = args.op;
  const Padded layout(op.height, op.width, op.kernel / 2, op.stride);
  Norm before{};
  if (args.first.present) {
    Moments moments;
    if (args.first.batch_statistics)
      for (int64_t n = 0; n < op.batch; n++) moments.add(args.x + op.in_at(n, c), op.in_size());
    before = args.first.finish(op.source(c), moments.statistics(), args.first_mean, args.first_inverse);
  }
  float *padded = scratch(kInputSlot, layout.size());
  float *convolved = args.second.present ? scratch(kOutputSlot, op.batch * op.out_size()) : nullptr;
  std::fill(padded, padded + layout.size(), 0.0f);
  Moments moments;
  for (int64_t n = 0; n < op.batch; n++) {
    const float *source = args.x + op.in_at(n, c);
    if (op.keep) {
      float *kept = args.z + op.kept_at(n, c);
      if (args.first.present) before.apply(source, kept, op.in_size());
      if (!args.first.present) copy(source, kept, op.in_size());
      layout.copy_in(padded, kept);
    } else {
      lay_out(layout, args.first.present, before, source, padded);
    }
    float *out = args.second.present ? convolved + n * op.out_size() : args.z + op.out_at(n, c);
    with_kernel(op.kernel, op.stride, [&](auto kernel, auto stride) {
      convolve<kernel.value, stride.value>(layout, padded, args.weight + c * kernel.value * kernel.value, out,
                                           op.out_height, op.out_width);
    });
    if (args.second.batch_statistics) moments.add(out, op.out_size());
  }
  if (args.second.present) {
    const Norm after = args.second.finish(c, moments.statistics(), args.second_mean, args.second_inverse);
    const bool past_cache = goes_past_cache(args.z, op.out_size(), op.batch * op.channels * op.out_size());
    for (int64_t n = 0; n < op.batch; n++)
      after.apply(convolved + n * op.out_size(), args.z + op.out_at(n, c), op.out_size(), past_cache);
  }
}

template <int K, int S>
void backward_channel(const DepthwiseBackward &args, int64_t c) {
  const Depthwise &op = args.op;
  constexpr int64_t pad = K / 2, taps = K * K;
  const int64_t in_size = op.in_size(), out_size = op.out_size(), source = op.source(c);
  const Padded layout(op.height, op.width, pad, S), d_layout(op.out_height, op.out_width, pad, 1);
  const Norm before = args.first.present ? args.first.channel(source) : Norm{};
  const Norm after = args.second.present ? args.second.channel(c) : Norm{};
  float *padded = scratch(kInputSlot, layout.size() + d_layout.size()), *d = padded + layout.size();
  std::fill(padded, padded + layout.size() + d_layout.size(), 0.0f);
  float *convolved = args.second.present ? scratch(kRestSlot, op.batch * out_size) : nullptr;
  float *dx = args.first.present ? scratch(kOutputSlot, op.batch * in_size) : nullptr;
  const float *w = args.weight + c * taps;
  float flipped[taps];
  std::reverse_copy(w, w + taps, flipped);
  Wide dw[taps];
  NormGradient after_sums, before_sums;
  for (int64_t n = 0; n < op.batch && args.second.present; n++) {
    lay_out(layout, args.first.present, before, args.x + op.in_at(n, c), padded);
    convolve<K, S>(layout, padded, w, convolved + n * out_size, op.out_height, op.out_width);
    after_sums.add(after, convolved + n * out_size, args.dz + op.out_at(n, c), nullptr, out_size);
  }
  const NormInputGradient through_norm(after, after_sums, static_cast<double>(op.batch * out_size),
                                       args.second.batch_statistics);
  const Vec a = all(after.scale()), b = all(after.shift());
  for (int64_t n = 0; n < op.batch; n++) {
    // d is the gradient of the convolution's output.
    const float *dz = args.dz + op.out_at(n, c), *plane = convolved + n * out_size;
    if (args.second.present) {
      with_activation(after.activation, [&](auto kind) {
        d_layout.fill(d, [&](int64_t i, auto count) {
          const Vec value = get(plane + i, count);
          return through_norm(value, get(dz + i, count) * slope<kind.value>(value * a + b));
        });
      });
    } else {
      d_layout.copy_in(d, dz);
    }
    lay_out(layout, args.first.present, before, args.x + op.in_at(n, c), padded);
    correlate<K, S>(layout, padded, d_layout, d, dw);
    float *own = args.first.present ? dx + n * in_size : args.dx + op.in_at(n, c);
    if constexpr (S == 1) {
      convolve<K, 1>(d_layout, d, flipped, own, op.height, op.width);
    } else {
      spread<K>(d_layout, d, w, own, op.height, op.width);
    }
    if (op.keep) {
      const float *direct = args.dz + op.kept_at(n, c);
      sweep(in_size, [&](int64_t i, auto count) { put(own + i, get(own + i, count) + get(direct + i, count), count); });
    }
    if (args.first.present) before_sums.add(before, args.x + op.in_at(n, c), own, own, in_size);
  }
  for (int64_t i = 0; i < taps; i++) args.dweight[c * taps + i] = static_cast<float>(dw[i].sum());
  if (args.second.present) {
    args.second_dgamma[c] = after_sums.gamma(after);
    args.second_dbeta[c] = after_sums.beta();
  }
  if (args.first.present) {
    args.first_dgamma[source] = before_sums.gamma(before);
    args.first_dbeta[source] = before_sums.beta();
    const NormInputGradient gradient(before, before_sums, static_cast<double>(op.batch * in_size),
                                     args.first.batch_statistics);
    const bool past_cache = goes_past_cache(args.dx, in_size, op.batch * op.channels * in_size);
    for (int64_t n = 0; n < op.batch; n++)
      gradient.apply(args.x + op.in_at(n, c), dx + n * in_size, args.dx + op.in_at(n, c), in_size, past_cache);
  }
}

}  // namespace
