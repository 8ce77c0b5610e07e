// BatchNorm with activation, forward and backward.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "pool.h"
#include "settings.h"
#include "vector.h"

namespace {

constexpr int64_t kSmallMap = 64;  // positions up to which a norm is computed for several channels at once
constexpr int64_t kExact = 128;    // sums of at most this number of floats are kept in float32, then added in float64

struct Statistics {
  double mean, variance, count;
};

// Mean and variance from `count` values' sums of differences from `shift` and of their squares. NaN stays NaN.
Statistics statistics_of(double shift, double total, double squares, double count) {
  const double offset = total / count, variance = squares / count - offset * offset;
  return {shift + offset, variance < 0 ? 0 : variance, count};
}

// Shifted sums for mean and variance of a channel. Without the shift, a large mean would cost precision.
struct Moments {
  float shift = 0;
  Wide totals, squares;
  double count = 0;

  void add(const float *plane, int64_t size) {
    if (count == 0) shift = plane[0];
    Vec s[2] = {}, q[2] = {};
    int64_t i = 0;
    for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
      for (int j = 0; j < 2; j++) {
        const Vec d = load(plane + i + j * kLanes) - shift;
        s[j] += d;
        q[j] += d * d;
      }
    }
    sweep(size - i, [&](int64_t j, auto count) {
      const Vec d = keep(get(plane + i + j, count) - shift, count);
      s[0] += d;
      q[0] += d * d;
    });
    totals.add(s[0] + s[1]);
    squares.add(q[0] + q[1]);
    count += size;
  }

  Statistics statistics() const { return statistics_of(shift, totals.sum(), squares.sum(), count); }
};

// BatchNorm with activation, for one channel.
struct Norm {
  float gamma, beta, mean, inverse;  // inverse: 1 / standard deviation
  int activation;

  float scale() const { return gamma * inverse; }
  float shift() const { return beta - mean * scale(); }

  // y = act(norm(x)) for one row of any length.
  void apply(const float *x, float *y, int64_t size, bool past_cache = false) const {
    const Vec a = all(scale()), b = all(shift());
    with_past_cache(past_cache, [&](auto past) {
      with_activation(activation, [&](auto kind) {
        sweep(size,
              [&](int64_t i, auto count) { put(past, y + i, activate<kind.value>(get(x + i, count) * a + b), count); });
      });
    });
  }
};

// The operator's inputs for one BatchNorm: gamma, beta, moving mean, moving variance.
struct NormInputs {
  const float *gamma, *beta;
  float *moving_mean, *moving_variance;
  float epsilon, momentum;  // momentum: the share of the old moving statistics
  int activation;
  bool present, batch_statistics;

  Norm with_moving_statistics(int64_t c) const {
    const double inverse = 1 / std::sqrt(static_cast<double>(moving_variance[c]) + epsilon);
    return {gamma[c], beta[c], moving_mean[c], static_cast<float>(inverse), activation};
  }

  // Computes the statistics of channel `c`, updates its moving statistics, and stores `mean` and `inverse` for the
  // backward pass.
  Norm finish(int64_t c, const Statistics &statistics, float *mean, float *inverse) const {
    double m = moving_mean[c], v = moving_variance[c];
    if (batch_statistics) {
      m = statistics.mean;
      v = statistics.variance;
      const double unbiased = statistics.count > 1 ? v * statistics.count / (statistics.count - 1) : v;
      moving_mean[c] = static_cast<float>(moving_mean[c] * momentum + m * (1 - momentum));
      moving_variance[c] = static_cast<float>(moving_variance[c] * momentum + unbiased * (1 - momentum));
    }
    mean[c] = static_cast<float>(m);
    inverse[c] = static_cast<float>(1 / std::sqrt(v + epsilon));
    return {gamma[c], beta[c], mean[c], inverse[c], activation};
  }
};

// The two sums over a channel that BatchNorm's gradient needs.
struct NormGradient {
  Wide wide_g, wide_gx;  // sums of g and g * (x - mean); g: gradient of the activation's input

  // Adds to the sums. Also writes the gradient to `g` unless it is null; `g` may be `dy` itself.
  void add(const Norm &norm, const float *x, const float *dy, float *g, int64_t size) {
    const Vec a = all(norm.scale()), b = all(norm.shift()), mean = all(norm.mean);
    Vec s[2] = {}, q[2] = {};
    with_activation(norm.activation, [&](auto kind) {
      sweep_pairs(size, [&](int64_t i, auto first, auto second) {
        const auto each = [&](int64_t at, auto count, Vec &s, Vec &q) {
          const Vec value = get(x + at, count);
          const Vec gradient = get(dy + at, count) * slope<kind.value>(value * a + b);
          if (g) put(g + at, gradient, count);
          s += gradient;
          q += gradient * (value - mean);  // beyond the end, dy and so `gradient` are 0
        };
        each(i, first, s[0], q[0]);
        if (second > 0) each(i + kLanes, second, s[1], q[1]);
      });
    });
    wide_g.add(s[0] + s[1]);
    wide_gx.add(q[0] + q[1]);
  }

  double sum_g() const { return wide_g.sum(); }
  double sum_gx() const { return wide_gx.sum(); }
  float gamma(const Norm &norm) const { return static_cast<float>(sum_gx() * norm.inverse); }
  float beta() const { return static_cast<float>(sum_g()); }
};

// BatchNorm's gradient for its input: dx = scale * (g - mean(g) - (x - mean) * inverse^2 * mean(g * (x - mean))). The
// last two terms exist with batch statistics only.
struct NormInputGradient {
  Vec scale, mean, offset, factor;

  NormInputGradient() = default;
  NormInputGradient(const Norm &norm, const NormGradient &sums, double count, bool batch_statistics) {
    scale = all(norm.scale());
    mean = all(norm.mean);
    offset = all(batch_statistics ? static_cast<float>(sums.sum_g() / count) : 0.0f);
    factor = all(batch_statistics ? static_cast<float>(sums.sum_gx() / count * norm.inverse * norm.inverse) : 0.0f);
  }

  Vec operator()(Vec x, Vec g) const { return scale * (g - offset - (x - mean) * factor); }

  // Writes dx of a row. g may be dx.
  void apply(const float *x, const float *g, float *dx, int64_t size, bool past_cache) const {
    with_past_cache(past_cache, [&](auto past) {
      sweep(size,
            [&](int64_t i, auto count) { put(past, dx + i, (*this)(get(x + i, count), get(g + i, count)), count); });
    });
  }
};

// The inputs of a BatchNorm's gradient.
struct NormValues {
  const float *gamma, *beta, *mean, *inverse;
  int activation;
  bool present, batch_statistics;

  Norm channel(int64_t c) const { return {gamma[c], beta[c], mean[c], inverse[c], activation}; }
};

// BatchNorm of small maps. kLanes channels of an image are one row of kLanes * size elements, whose vectors are full
// whatever the size. The sums run over the images, position by position, and over the positions of a channel at the
// end.
class NormRows {
 public:
  NormRows(int64_t batch, int64_t channels, int64_t size, int64_t block)
      : batch_(batch),
        channels_(channels),
        size_(size),
        first_(block * kLanes),
        count_(std::min(kLanes, channels - first_)) {}

  int64_t first() const { return first_; }
  int64_t count() const { return count_; }
  int64_t row() const { return count_ * size_; }
  int64_t at(int64_t n) const { return at(n, channels_ * size_); }
  // The same for feature maps whose images are `image` apart.
  int64_t at(int64_t n, int64_t image) const { return n * image + first_ * size_; }

  // Writes value(channel of the block) for each element of a row.
  template <class Value>
  void spread(float *to, Value value) const {
    for (int64_t l = 0; l < count_; l++) std::fill(to + l * size_, to + (l + 1) * size_, value(l));
  }

  // Calls terms(n, position, count, s, q) to add to the sums of each position; finish(channel of the block, total of s,
  // total of q) gets the sums of each channel.
  template <class Terms, class Finish>
  void sums(Terms terms, Finish finish) const {
    double *wide = reinterpret_cast<double *>(scratch(kPartialSlot, 4 * row()));
    std::fill(wide, wide + 2 * row(), 0.0);
    sweep(row(), [&](int64_t i, auto count) {
      for (int64_t n = 0; n < batch_;) {
        Vec s{}, q{};
        for (const int64_t end = std::min(batch_, n + kExact); n < end; n++) terms(n, i, count, s, q);
        for (int64_t lane = 0; lane < count; lane++) {
          wide[i + lane] += s[lane];
          wide[row() + i + lane] += q[lane];
        }
      }
    });
    for (int64_t l = 0; l < count_; l++) {
      double s = 0, q = 0;
      for (int64_t i = l * size_; i < (l + 1) * size_; i++) {
        s += wide[i];
        q += wide[row() + i];
      }
      finish(l, s, q);
    }
  }

 private:
  int64_t batch_, channels_, size_, first_, count_;
};

// The images of y are `image` apart.
void norm_forward_rows(const NormInputs &inputs, const NormRows &rows, int64_t batch, int64_t size, const float *x,
                       float *y, int64_t image, float *mean, float *inverse) {
  const int64_t row = rows.row();
  float *shift = scratch(kInputSlot, 3 * row), *a = shift + row, *b = a + row;
  rows.spread(shift, [&](int64_t l) { return x[rows.at(0) + l * size]; });
  Norm norms[kLanes];
  const auto finish = [&](int64_t l, double total, double squares) {
    const Statistics statistics = statistics_of(shift[l * size], total, squares, static_cast<double>(batch * size));
    norms[l] = inputs.finish(rows.first() + l, statistics, mean, inverse);
  };
  if (inputs.batch_statistics) {
    rows.sums(
        [&](int64_t n, int64_t i, auto count, Vec &s, Vec &q) {
          const Vec d = get(x + rows.at(n) + i, count) - get(shift + i, count);
          s += d;
          q += d * d;
        },
        finish);
  } else {
    for (int64_t l = 0; l < rows.count(); l++) finish(l, 0, 0);
  }
  rows.spread(a, [&](int64_t l) { return norms[l].scale(); });
  rows.spread(b, [&](int64_t l) { return norms[l].shift(); });
  with_activation(inputs.activation, [&](auto kind) {
    for (int64_t n = 0; n < batch; n++)
      sweep(row, [&](int64_t i, auto count) {
        const Vec z = get(x + rows.at(n) + i, count) * get(a + i, count) + get(b + i, count);
        put(y + rows.at(n, image) + i, activate<kind.value>(z), count);
      });
  });
}

// The images of dy are `image` apart.
void norm_backward_rows(const NormValues &values, const NormRows &rows, int64_t batch, int64_t size, const float *x,
                        const float *dy, int64_t image, float *dx, float *dgamma, float *dbeta) {
  const int64_t row = rows.row();
  float *scale = scratch(kInputSlot, 5 * row), *shift = scale + row, *mean = shift + row;
  float *offset = mean + row, *factor = offset + row;
  rows.spread(scale, [&](int64_t l) { return values.channel(rows.first() + l).scale(); });
  rows.spread(shift, [&](int64_t l) { return values.channel(rows.first() + l).shift(); });
  rows.spread(mean, [&](int64_t l) { return values.mean[rows.first() + l]; });
  with_activation(values.activation, [&](auto kind) {
    const auto gradient = [&](int64_t n, int64_t i, auto count, Vec value) {
      const Vec z = value * get(scale + i, count) + get(shift + i, count);
      return get(dy + rows.at(n, image) + i, count) * slope<kind.value>(z);
    };
    double sums_g[kLanes], sums_gx[kLanes];
    rows.sums(
        [&](int64_t n, int64_t i, auto count, Vec &s, Vec &q) {
          const Vec value = get(x + rows.at(n) + i, count), g = gradient(n, i, count, value);
          s += g;
          q += g * (value - get(mean + i, count));
        },
        [&](int64_t l, double sum_g, double sum_gx) {
          sums_g[l] = sum_g;
          sums_gx[l] = sum_gx;
          dgamma[rows.first() + l] = static_cast<float>(sum_gx * values.inverse[rows.first() + l]);
          dbeta[rows.first() + l] = static_cast<float>(sum_g);
        });
    const double total = values.batch_statistics ? static_cast<double>(batch * size) : HUGE_VAL;
    rows.spread(offset, [&](int64_t l) { return static_cast<float>(sums_g[l] / total); });
    rows.spread(factor, [&](int64_t l) {
      const double inverse = values.inverse[rows.first() + l];
      return static_cast<float>(sums_gx[l] / total * inverse * inverse);
    });
    for (int64_t n = 0; n < batch; n++)
      sweep(row, [&](int64_t i, auto count) {
        const Vec value = get(x + rows.at(n) + i, count), g = gradient(n, i, count, value);
        const Vec centred = (value - get(mean + i, count)) * get(factor + i, count);
        put(dx + rows.at(n) + i, get(scale + i, count) * (g - get(offset + i, count) - centred), count);
      });
  });
}

NormInputs norm_inputs(void **data, const NormSettings &settings) {
  return {static_cast<const float *>(data[0]),
          static_cast<const float *>(data[1]),
          static_cast<float *>(data[2]),
          static_cast<float *>(data[3]),
          settings.epsilon,
          settings.momentum,
          static_cast<int>(settings.activation),
          settings.present != 0,
          settings.batch_statistics != 0};
}

NormValues norm_values(void **data, const NormSettings &settings) {
  return {static_cast<const float *>(data[0]),   static_cast<const float *>(data[1]),
          static_cast<const float *>(data[2]),   static_cast<const float *>(data[3]),
          static_cast<int>(settings.activation), settings.present != 0,
          settings.batch_statistics != 0};
}

}  // namespace
