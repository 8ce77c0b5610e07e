// Squeeze-and-Excitation: each channel is scaled by a gate, which depends on the means of all channels. The gate is the
// hard sigmoid of a second fully connected layer, after a first layer with ReLU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "maps.h"
#include "pool.h"
#include "vector.h"

namespace {

inline float hard_sigmoid(float z) { return std::min(std::max(z + 3, 0.0f), 6.0f) * (1.0f / 6); }
inline float hard_sigmoid_slope(float z) { return z > -3 && z < 3 ? 1.0f / 6 : 0.0f; }

inline float dot(const float *a, const float *b, int64_t size) {
  Vec total{};
  sweep(size, [&](int64_t i, auto count) { total += get(a + i, count) * get(b + i, count); });
  return static_cast<float>(sum(total));
}

// to += factor * from.
inline void add_scaled(const float *from, float factor, float *to, int64_t size) {
  sweep(size, [&](int64_t i, auto count) { put(to + i, get(to + i, count) + get(from + i, count) * factor, count); });
}

// The two layers: weights (outputs, inputs) and biases.
struct SqueezeLayers {
  int64_t channels, hidden;
  const float *reduce, *reduce_bias, *expand, *expand_bias;
};

// Computes hidden (N, R) and the gate's input z (N, C) of the means (N, C).
void squeeze_gate(const SqueezeLayers &layers, int64_t batch, const float *means, float *hidden, float *z) {
  const int64_t channels = layers.channels, reduced = layers.hidden;
  parallel(batch, [&](int64_t n) {
    const float *mean = means + n * channels;
    float *own = hidden + n * reduced;
    for (int64_t r = 0; r < reduced; r++) {
      const float value = layers.reduce_bias[r] + dot(layers.reduce + r * channels, mean, channels);
      own[r] = value < 0 ? 0 : value;  // keeps NaN
    }
    for (int64_t c = 0; c < channels; c++)
      z[n * channels + c] = layers.expand_bias[c] + dot(layers.expand + c * reduced, own, reduced);
  });
}

// y = x times the hard sigmoid of z (N, C); y may be x.
void scale_by_gate(const MapShape &shape, const float *x, const float *z, float *y) {
  parallel_planes(shape, [&](int64_t i) {
    const float factor = hard_sigmoid(z[i]);
    const int64_t at = i * shape.size;
    sweep(shape.size, [&](int64_t j, auto count) { put(y + at + j, get(x + at + j, count) * factor, count); });
  });
}

// The gradients of a layer's weight (outputs, inputs) and bias, from its inputs (N, inputs) and the gradient of its
// outputs (N, outputs).
void layer_gradients(int64_t batch, int64_t inputs, int64_t outputs, const float *x, const float *dy, float *dweight,
                     float *dbias) {
  parallel(outputs, [&](int64_t o) {
    float *own = dweight + o * inputs, total = 0;
    std::fill(own, own + inputs, 0.0f);
    for (int64_t n = 0; n < batch; n++) {
      add_scaled(x + n * inputs, dy[n * outputs + o], own, inputs);
      total += dy[n * outputs + o];
    }
    dbias[o] = total;
  });
}

// From dz (N, C), the gradient of the gate's input: the gradients of the hidden layer before its ReLU (N, R), and of
// the means (N, C).
void squeeze_gradients(const SqueezeLayers &layers, int64_t batch, const float *hidden, const float *dz, float *dhidden,
                       float *dmeans) {
  const int64_t channels = layers.channels, reduced = layers.hidden;
  parallel(batch, [&](int64_t n) {
    float *own = dhidden + n * reduced, *dmean = dmeans + n * channels;
    std::fill(own, own + reduced, 0.0f);
    for (int64_t c = 0; c < channels; c++) add_scaled(layers.expand + c * reduced, dz[n * channels + c], own, reduced);
    std::fill(dmean, dmean + channels, 0.0f);
    for (int64_t r = 0; r < reduced; r++) {
      if (hidden[n * reduced + r] == 0) own[r] = 0;
      add_scaled(layers.reduce + r * channels, own[r], dmean, channels);
    }
  });
}

}  // namespace
