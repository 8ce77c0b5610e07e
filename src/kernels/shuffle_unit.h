// ShuffleNetV2's unit at stride 1. Half of the channels pass. The other half, the branch, is convolved: 1x1, depthwise,
// 1x1, each with BatchNorm, and the two 1x1 convolutions with ReLU. The branch reads and writes its channels where they
// are in the whole map, so split, concatenation and shuffle are no passes of their own.
#pragma once

#include <cstdint>

#include "depthwise.h"
#include "depthwise_blocks.h"
#include "norm_maps.h"
#include "pool.h"
#include "product.h"
#include "settings.h"

namespace {

// A 1x1 convolution of the branch, with as many outputs as inputs.
struct BranchProduct {
  const MapShape &shape;

  int64_t columns() const { return shape.batch * shape.size; }

  void forward(const float *weight, const Channels<const float> &x, const Channels<float> &y) const {
    multiply(Weights(weight, shape.channels, shape.channels, shape.channels, 1, columns()), x, y, columns());
  }

  void backward(const float *weight, const Channels<const float> &x, const Channels<const float> &dy,
                const Channels<float> &dx, float *dweight) const {
    const Weights transposed(weight, shape.channels, shape.channels, 1, shape.channels, columns());
    multiply_backward(&transposed, x, shape.channels, dy, shape.channels, dx, columns(), dweight);
  }
};

struct ShuffleUnit {
  int64_t batch, channels, height, width;
  bool interleaved;  // whether even and odd channels of x are the halves, and the output is not interleaved
  MapShape half;

  ShuffleUnit(const int64_t *x, const ShuffleUnitSettings &settings)
      : batch(x[0]),
        channels(x[1]),
        height(x[2]),
        width(x[3]),
        interleaved(settings.interleaved != 0),
        half(batch, channels / 2, height * width) {}

  // The first half (part 0), which passes, or the second half, the branch, of a map with all channels.
  template <class Float>
  Channels<Float> part(Float *map, int part, bool interleaved) const {
    const int64_t size = half.size, total = batch * channels * size;
    const bool past_cache = goes_past_cache(map, size, total);
    if (interleaved) return {map + part * size, 2 * size, channels * size, size, past_cache};
    return {map + part * half.channels * size, size, channels * size, size, past_cache};
  }
  template <class Float>
  Channels<Float> part_of_input(Float *map, int i) const {
    return part(map, i, interleaved);
  }
  template <class Float>
  Channels<Float> part_of_output(Float *map, int i) const {
    return part(map, i, !interleaved);
  }

  Depthwise depthwise(const int64_t *weight) const {
    const int64_t in[4] = {batch, half.channels, height, width};
    return Depthwise(in, half.channels, weight[2], 1);
  }
};

}  // namespace
