// Operations on whole feature maps: pooling, channels, elements.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>

#include "arguments.h"
#include "depthwise.h"
#include "pool.h"
#include "settings.h"
#include "vector.h"

namespace {

// 3x3 max pooling at stride 2, padded by 1. NaN counts as the largest number, as for MindSpore's operator.
struct MaxPool {
  static constexpr int64_t kPlanes = 8;  // planes of a task, which share a border
  int64_t batch, channels, height, width;
  Padded layout;

  explicit MaxPool(const int64_t *x)
      : batch(x[0]), channels(x[1]), height((x[2] + 1) / 2), width((x[3] + 1) / 2), layout(x[2], x[3], 1, 2) {}

  int64_t in_size() const { return layout.height * layout.width; }
  int64_t out_size() const { return height * width; }
  bool fits(const Arguments &arguments, int out) const {
    return arguments.has_shape(out, {batch, channels, height, width});
  }

  // Calls task(plane, padded) for each plane of x, in parallel; the border of the padded plane is -infinity.
  template <class Task>
  void for_planes(const float *x, Task task) const {
    const int64_t planes = batch * channels;
    parallel((planes + kPlanes - 1) / kPlanes, [&](int64_t block) {
      float *padded = scratch(kInputSlot, layout.size());
      std::fill(padded, padded + layout.size(), -std::numeric_limits<float>::infinity());
      for (int64_t plane = block * kPlanes; plane < std::min(planes, (block + 1) * kPlanes); plane++) {
        layout.copy_in(padded, x + plane * in_size());
        task(plane, padded);
      }
    });
  }

  // The maxima of the windows of row `y` of the outputs, from column `x` on.
  Vec maxima(const float *in, int64_t y, int64_t x) const {
    Vec largest = load(in + layout.at(2 * y, 0) + x);
    for (int tap = 1; tap < 9; tap++) {
      const Vec v = load(in + layout.at(2 * y + tap / 3, tap % 3) + x);
      largest = (v <= largest) | (largest != largest) ? largest : v;
    }
    return largest;
  }

  // One plane: out[y][x] = maximum of its window.
  void forward(const float *in, float *out) const {
    for (int64_t y = 0; y < height; y++)
      sweep(width, [&](int64_t x, auto count) { put(out + y * width + x, maxima(in, y, x), count); });
  }

  // One plane: dx gets the gradient of each output at the first maximum of its window.
  void backward(const float *in, const float *dy, float *dx) const {
    float *gradient = scratch(kOutputSlot, layout.size());
    std::fill(gradient, gradient + layout.size(), 0.0f);
    for (int64_t y = 0; y < height; y++) {
      sweep(width, [&](int64_t x, auto count) {
        const Vec largest = maxima(in, y, x);
        Vec left = get(dy + y * width + x, count);
        for (int tap = 0; tap < 9; tap++) {
          const int64_t at = layout.at(2 * y + tap / 3, tap % 3) + x;
          const Vec v = load(in + at);
          const auto chosen = (v == largest) | (v != v);
          store(gradient + at, load(gradient + at) + (chosen ? left : Vec{}));
          left = chosen ? Vec{} : left;
        }
      });
    }
    layout.copy_out(gradient, dx);
  }
};

// Two feature maps of the same size, and the feature map with the channels of both.
struct Halves {
  int64_t batch, first, second, size;
  bool interleaved;

  Halves(const int64_t *a, const int64_t *b, const HalvesSettings &settings)
      : batch(a[0]), first(a[1]), second(b[1]), size(a[2] * a[3]), interleaved(settings.interleaved != 0) {}

  int64_t channels() const { return first + second; }
  // part(i): which of the two holds plane `i` of the whole. at(i): its position there.
  int part(int64_t i) const {
    const int64_t c = i % channels();
    return static_cast<int>(interleaved ? c % 2 : c >= first);
  }
  int64_t at(int64_t i) const {
    const int64_t n = i / channels(), c = i % channels();
    if (interleaved) return (n * first + c / 2) * size;
    return (c < first ? n * first + c : n * second + c - first) * size;
  }
};

// The shape of feature maps (N, C, H, W) with H * W positions.
struct MapShape {
  int64_t batch, channels, size;

  MapShape(const int64_t *shape) : batch(shape[0]), channels(shape[1]), size(shape[2] * shape[3]) {}
  MapShape(int64_t batch, int64_t channels, int64_t size) : batch(batch), channels(channels), size(size) {}

  int64_t planes() const { return batch * channels; }
  int64_t elements() const { return planes() * size; }
  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
};

// Calls task(i) for each plane of a feature map, in parallel; one thread takes several planes if they are small.
void parallel_planes(const MapShape &shape, const std::function<void(int64_t)> &task) {
  const int64_t planes = shape.planes(), block = 1 + 16384 / shape.size;
  parallel((planes + block - 1) / block, [&](int64_t b) {
    for (int64_t i = b * block; i < std::min(planes, (b + 1) * block); i++) task(i);
  });
}

// Calls body(position, count) for each vector of a feature map's elements, distributed over the threads.
template <class Body>
void for_elements(const int64_t *shape, Body body) {
  const int64_t size = shape[2] * shape[3];
  parallel_planes(shape, [&](int64_t i) { sweep(size, [&](int64_t j, auto count) { body(i * size + j, count); }); });
}

// The mean of each plane (N, C, H, W) to (N, C).
void mean_of_planes(const MapShape &shape, const float *x, float *means) {
  parallel_planes(shape, [&](int64_t i) {
    Vec total{};
    sweep(shape.size, [&](int64_t j, auto count) { total += get(x + i * shape.size + j, count); });
    means[i] = static_cast<float>(sum(total) / shape.size);
  });
}

}  // namespace
