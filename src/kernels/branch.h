// Inference of a branch of convolutions with their norms: 1x1 (optional), depthwise, Squeeze-and-Excitation (optional),
// 1x1. These are ShuffleNetV2's unit at stride 1, and the inverted residual of MobileNetV2.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "depthwise.h"
#include "depthwise_blocks.h"
#include "norm_maps.h"
#include "pool.h"
#include "product.h"
#include "settings.h"
#include "squeeze.h"

namespace {

// Floats of the maps of a group of images, which stay in the second-level caches from one convolution to the next.
constexpr int64_t kGroupFloats = 256 << 10;

struct Branch {
  Depthwise depthwise;                   // of all images
  int64_t in, out;                       // channels
  const float *expand, *taps, *project;  // weights
  NormInputs first, second, third;       // without the first norm, there is no expansion
  SqueezeLayers squeeze;                 // without channels, there is no Squeeze-and-Excitation

  // Computes y of x. With `residual`, x is added to y.
  void run(const Channels<const float> &x, const Channels<float> &y, bool residual) const {
    const int64_t batch = depthwise.batch, hidden = depthwise.channels;
    const int64_t group = std::max<int64_t>(1, std::min(batch, kGroupFloats / (hidden * depthwise.in_size())));
    const Weights last(project, out, hidden, third, 0, batch * depthwise.out_size());
    const Weights before(expand, first.present ? hidden : 0, in, first, 0, batch * depthwise.in_size());
    for (int64_t n = 0; n < batch; n += group)
      run_images(std::min(group, batch - n), before, last, x.from_image(n), y.from_image(n), residual);
  }

 private:
  void run_images(int64_t count, const Weights &before, const Weights &last, const Channels<const float> &x,
                  const Channels<float> &y, bool residual) const {
    const int64_t in_size = depthwise.in_size(), out_size = depthwise.out_size();
    const MapShape wide(count, depthwise.channels, in_size), narrow(count, depthwise.channels, out_size);
    const float *source = x.data;
    if (first.present) {
      float *expanded = scratch(kFirstMapSlot, wide.elements());
      multiply(before, x, channels_of(wide, expanded), count * in_size);
      source = expanded;
    }
    float *convolved = scratch(kSecondMapSlot, narrow.elements());
    std::vector<float> statistics(2 * depthwise.channels);  // which only a backward pass needs
    DepthwiseForward middle{depthwise, source,  taps,    NormInputs{},      second,
                            convolved, nullptr, nullptr, statistics.data(), statistics.data() + depthwise.channels};
    middle.op.batch = count;
    ::run(middle);
    if (squeeze.channels > 0) {
      std::vector<float> means(narrow.planes()), z(narrow.planes()), reduced(count * squeeze.hidden);
      mean_of_planes(narrow, convolved, means.data());
      squeeze_gate(squeeze, count, means.data(), reduced.data(), z.data());
      scale_by_gate(narrow, convolved, z.data(), convolved);
    }
    multiply(last, channels_of<const float>(narrow, convolved), y, count * out_size);
    if (residual) add_channels(MapShape(count, out, out_size), x, y);
  }
};

}  // namespace
