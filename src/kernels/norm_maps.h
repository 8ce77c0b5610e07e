// BatchNorm of whole feature maps, in parallel. Its output may be a part of the channels of a larger map, so that a
// concatenation after it needs no pass of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "maps.h"
#include "norm.h"
#include "pool.h"
#include "product.h"
#include "vector.h"

namespace {

// All channels of a feature map.
template <class Float>
Channels<Float> channels_of(const MapShape &shape, Float *map) {
  return {map, shape.size, shape.channels * shape.size, shape.size, goes_past_cache(map, shape.size, shape.elements())};
}

void copy_channels(const MapShape &shape, const Channels<const float> &from, const Channels<float> &to) {
  parallel_planes(shape, [&](int64_t i) {
    const int64_t n = i / shape.channels, c = i % shape.channels;
    copy(from.plane(n, c), to.plane(n, c), shape.size);
  });
}

// to += from, plane by plane.
void add_channels(const MapShape &shape, const Channels<const float> &from, const Channels<float> &to) {
  parallel_planes(shape, [&](int64_t i) {
    const int64_t n = i / shape.channels, c = i % shape.channels;
    const float *x = from.plane(n, c);
    float *y = to.plane(n, c);
    sweep(shape.size, [&](int64_t j, auto count) { put(y + j, get(y + j, count) + get(x + j, count), count); });
  });
}

// y = act(norm(x)). Stores mean and inverse of each channel for the backward pass.
void normalise_maps(const NormInputs &inputs, const MapShape &shape, const float *x, const Channels<float> &y,
                    float *mean, float *inverse) {
  const auto [batch, channels, size] = shape;
  if (size <= kSmallMap) {
    // Small maps are computed several channels at once, which must lie side by side.
    std::vector<float> beside(y.channel == size ? 0 : shape.elements());
    const Channels<float> target = beside.empty() ? y : channels_of(shape, beside.data());
    parallel(shape.blocks(), [&](int64_t block) {
      const NormRows rows(shape.batch, shape.channels, shape.size, block);
      norm_forward_rows(inputs, rows, shape.batch, shape.size, x, target.data, target.image, mean, inverse);
    });
    if (!beside.empty()) copy_channels(shape, channels_of<const float>(shape, beside.data()), y);
    return;
  }
  const Channels<const float> in = channels_of(shape, x);
  parallel(channels, [&](int64_t c) {
    Moments moments;
    if (inputs.batch_statistics)
      for (int64_t n = 0; n < shape.batch; n++) moments.add(in.plane(n, c), shape.size);
    const Norm norm = inputs.finish(c, moments.statistics(), mean, inverse);
    for (int64_t n = 0; n < shape.batch; n++) norm.apply(in.plane(n, c), y.plane(n, c), shape.size, y.past_cache);
  });
}

// The gradients of x, gamma and beta.
void norm_gradients(const NormValues &values, const MapShape &shape, const float *x, const Channels<const float> &dy,
                    float *dx, float *dgamma, float *dbeta) {
  const int64_t batch = shape.batch, size = shape.size;
  if (size <= kSmallMap) {
    std::vector<float> beside(dy.channel == size ? 0 : shape.elements());
    if (!beside.empty()) copy_channels(shape, dy, channels_of(shape, beside.data()));
    const Channels<const float> source = beside.empty() ? dy : channels_of<const float>(shape, beside.data());
    parallel(shape.blocks(), [&](int64_t block) {
      const NormRows rows(batch, shape.channels, size, block);
      norm_backward_rows(values, rows, batch, size, x, source.data, source.image, dx, dgamma, dbeta);
    });
    return;
  }
  const Channels<const float> in = channels_of(shape, x);
  const Channels<float> out = channels_of(shape, dx);
  parallel(shape.channels, [&](int64_t c) {
    const Norm norm = values.channel(c);
    NormGradient sums;
    float *g = scratch(kGradientSlot, batch * size);
    for (int64_t n = 0; n < batch; n++) sums.add(norm, in.plane(n, c), dy.plane(n, c), g + n * size, size);
    dgamma[c] = sums.gamma(norm);
    dbeta[c] = sums.beta();
    const NormInputGradient gradient(norm, sums, static_cast<double>(batch * size), values.batch_statistics);
    for (int64_t n = 0; n < batch; n++)
      gradient.apply(in.plane(n, c), g + n * size, out.plane(n, c), size, out.past_cache);
  });
}

}  // namespace
