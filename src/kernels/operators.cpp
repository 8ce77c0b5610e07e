// Float32 NCHW kernels for training small CNNs on a CPU: BatchNorm with activation, depthwise convolution with
// BatchNorm and activation before and after it, 1x1 convolution (a matrix product of the oneDNN in MindSpore's wheel),
// dense KxK convolution with few input channels, pooling, and others. Each OPERATOR below is a MindSpore operator.
// `data` has its inputs and outputs in the order that operators.py gives.
//
// No result depends on the number of threads: a single task computes each output, in a fixed order.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "arguments.h"
#include "branch.h"
#include "depthwise.h"
#include "depthwise_blocks.h"
#include "maps.h"
#include "norm_maps.h"
#include "pool.h"
#include "product.h"
#include "settings.h"
#include "shuffle_unit.h"
#include "squeeze.h"
#include "vector.h"

namespace {

const float *floats(void *data) { return static_cast<const float *>(data); }
float *output(void *data) { return static_cast<float *>(data); }

// Returns whether the shapes of a depthwise convolution fit: weight, first and second norm, output at these positions.
bool fits(const Arguments &arguments, const Depthwise &op, const DepthwiseSettings &settings, int weight, int first,
          int second, int out) {
  return arguments.has_shape(weight, {op.channels, 1, op.kernel, op.kernel}) &&
         arguments.has_shape(first, {op.norm_channels(settings.before)}) &&
         arguments.has_shape(second, {op.norm_channels(settings.after)}) &&
         arguments.has_shape(out, {op.batch, op.out_channels(), op.out_height, op.out_width});
}

// Returns whether a weight, argument `weight`, divides the channels of `x` into groups of a 1x1 convolution.
bool fits(const Arguments &arguments, const int64_t *x, int weight) {
  const int64_t in = arguments.shapes[weight][1], groups = x[1] / in;
  return arguments.has_shape(0, {x[0], groups * in, x[2], x[3]}) &&
         (arguments.shapes[weight][0] % groups == 0 ||
          arguments.complain("output channels", ("a multiple of " + std::to_string(groups)).c_str()));
}

// Returns whether argument `whole` has the channels of two feature maps, and whether these can alternate if they must.
bool fits(const Arguments &arguments, const Halves &op, int whole) {
  const int64_t *shape = arguments.shapes[whole];
  return arguments.has_shape(whole, {op.batch, op.channels(), shape[2], shape[3]}) &&
         (!op.interleaved || op.first == op.second ||
          arguments.complain("channels that do not alternate", "two halves of the same size"));
}

// Returns whether the input of a unit has two halves like the branch's weights.
bool fits(const Arguments &arguments, const ShuffleUnit &op, int weight) {
  return arguments.has_shape(weight, {op.half.channels, op.half.channels, 1, 1}) &&
         (op.channels % 2 == 0 || arguments.complain("an odd number of channels", "two halves"));
}

// The patches of feature maps (N, C, H, W) for a dense convolution with the settings stride and padding.
template <class Float>
Patches<Float> patches(Float *images, const int64_t *shape, const int64_t *weight, const DenseSettings &settings) {
  const int64_t stride = static_cast<int64_t>(settings.stride), padding = static_cast<int64_t>(settings.padding);
  const int64_t out_height = (shape[2] + 2 * padding - weight[2]) / stride + 1;
  const int64_t out_width = (shape[3] + 2 * padding - weight[3]) / stride + 1;
  return {images, shape[1], shape[2], shape[3], weight[2], stride, padding, out_height, out_width};
}

}  // namespace

extern "C" void set_threads(int count) { Pool::instance().set_threads(count); }

// Inputs images, mean, factor; output y = (image - mean) * factor, channel by channel.
OPERATOR(preprocess, NoSettings, "*NHWC C C -> NCHW") {
  const uint8_t *images = static_cast<const uint8_t *>(data[0]);
  const float *mean = floats(data[1]), *factor = floats(data[2]);
  float *y = output(data[3]);
  const int64_t height = shapes[0][1], width = shapes[0][2], channels = shapes[0][3];
  parallel(shapes[0][0] * height, [&](int64_t row) {
    const uint8_t *pixels = images + row * width * channels;
    for (int64_t c = 0; c < channels; c++) {
      float *to = y + ((row / height * channels + c) * height + row % height) * width;
      for (int64_t x = 0; x < width; x++) to[x] = (static_cast<float>(pixels[x * channels + c]) - mean[c]) * factor[c];
    }
  });
  return 0;
}

// Inputs x, gamma, beta, moving mean and variance, settings; outputs y, mean, inverse.
OPERATOR(norm_forward, NormSettings, "NCHW C C C C S -> NCHW C C") {
  const MapShape shape(shapes[0]);
  normalise_maps(norm_inputs(data + 1, settings), shape, floats(data[0]), channels_of(shape, output(data[6])),
                 output(data[7]), output(data[8]));
  return 0;
}

// Inputs x, dy, gamma, beta, mean, inverse, settings; outputs dx, dgamma, dbeta.
OPERATOR(norm_backward, NormSettings, "NCHW NCHW C C C C S -> NCHW C C") {
  const MapShape shape(shapes[0]);
  norm_gradients(norm_values(data + 2, settings), shape, floats(data[0]), channels_of(shape, floats(data[1])),
                 output(data[7]), output(data[8]), output(data[9]));
  return 0;
}

// Inputs x, first norm (4), weight, second norm (4), settings; outputs z, mean and inverse of the first norm, mean and
// inverse of the second norm. A missing norm has inputs and outputs with one element.
OPERATOR(depthwise_forward, DepthwiseSettings, "NCHW A A A A C1KK B B B B S -> NOhw A A B B") {
  const DepthwiseForward args{Depthwise(shapes[0], shapes[5], settings),
                              floats(data[0]),
                              floats(data[5]),
                              norm_inputs(data + 1, settings.before),
                              norm_inputs(data + 6, settings.after),
                              output(data[11]),
                              output(data[12]),
                              output(data[13]),
                              output(data[14]),
                              output(data[15])};
  if (!fits(arguments, args.op, settings, 5, 1, 6, 11)) return kMismatch;
  run(args);
  return 0;
}

// Inputs x, dz; gamma, beta, mean, inverse of the first norm; weight; the same four of the second norm; settings.
// Outputs dx; dgamma, dbeta of the first norm; dweight; dgamma, dbeta of the second norm. The kernel recomputes the
// feature maps between x and z.
OPERATOR(depthwise_backward, DepthwiseSettings, "NCHW NOhw A A A A C1KK B B B B S -> NCHW A A C1KK B B") {
  const DepthwiseBackward args{Depthwise(shapes[0], shapes[6], settings),
                               floats(data[0]),
                               floats(data[1]),
                               floats(data[6]),
                               norm_values(data + 2, settings.before),
                               norm_values(data + 7, settings.after),
                               output(data[12]),
                               output(data[13]),
                               output(data[14]),
                               output(data[15]),
                               output(data[16]),
                               output(data[17])};
  if (!fits(arguments, args.op, settings, 6, 2, 7, 1)) return kMismatch;
  run(args);
  return 0;
}

// Inputs x, weight; output y.
OPERATOR(pointwise_forward, NoSettings, "NCHW OI11 -> NOHW") {
  if (!fits(arguments, shapes[0], 1)) return kMismatch;
  const Pointwise op(shapes[0], shapes[1]);
  const float *x = floats(data[0]), *weight = floats(data[1]);
  float *y = output(data[2]);
  for (int64_t g = 0; g < op.groups; g++) {
    const Weights weights(weight + g * op.out * op.in, op.out, op.in, op.in, 1, op.columns());
    multiply(weights, op.group(x, op.in_channels, g), op.group(y, op.out_channels, g), op.columns());
  }
  return 0;
}

// For inference. Inputs x, weight, gamma, beta, moving mean and variance, settings; output y.
OPERATOR(pointwise_norm, NormSettings, "NCHW OI11 O O O O S -> NOHW") {
  if (!fits(arguments, shapes[0], 1)) return kMismatch;
  const Pointwise op(shapes[0], shapes[1]);
  const float *x = floats(data[0]), *weight = floats(data[1]);
  const NormInputs norm = norm_inputs(data + 2, settings);
  float *y = output(data[7]);
  for (int64_t g = 0; g < op.groups; g++) {
    const Weights weights(weight + g * op.out * op.in, op.out, op.in, norm, g * op.out, op.columns());
    multiply(weights, op.group(x, op.in_channels, g), op.group(y, op.out_channels, g), op.columns());
  }
  return 0;
}

// Inputs x, dy, weight; outputs dx, dweight.
OPERATOR(pointwise_backward, NoSettings, "NCHW NOHW OI11 -> NCHW OI11") {
  if (!fits(arguments, shapes[0], 2)) return kMismatch;
  const Pointwise op(shapes[0], shapes[2]);
  const float *x = floats(data[0]), *dy = floats(data[1]), *weight = floats(data[2]);
  float *dx = output(data[3]), *dweight = output(data[4]);
  for (int64_t g = 0; g < op.groups; g++) {
    const Weights transposed(weight + g * op.out * op.in, op.in, op.out, 1, op.in, op.columns());
    multiply_backward(&transposed, op.group(x, op.in_channels, g), op.in, op.group(dy, op.out_channels, g), op.out,
                      op.group(dx, op.in_channels, g), op.columns(), dweight + g * op.out * op.in);
  }
  return 0;
}

// Input x; output y: 3x3 max pooling at stride 2, padded by 1.
OPERATOR(max_pool_forward, NoSettings, "NCHW -> NChw") {
  const MaxPool op(shapes[0]);
  if (!op.fits(arguments, 1)) return kMismatch;
  const float *x = floats(data[0]);
  float *y = output(data[1]);
  op.for_planes(x, [&](int64_t plane, const float *padded) { op.forward(padded, y + plane * op.out_size()); });
  return 0;
}

// Inputs x, dy; output dx.
OPERATOR(max_pool_backward, NoSettings, "NCHW NChw -> NCHW") {
  const MaxPool op(shapes[0]);
  if (!op.fits(arguments, 1)) return kMismatch;
  const float *x = floats(data[0]), *dy = floats(data[1]);
  float *dx = output(data[2]);
  op.for_planes(x, [&](int64_t plane, const float *padded) {
    op.backward(padded, dy + plane * op.out_size(), dx + plane * op.in_size());
  });
  return 0;
}

// Inputs a, b, settings; output: the concatenated channels. Interleaved: they alternate.
OPERATOR(merge_channels, HalvesSettings, "NAHW NBHW S -> NCHW") {
  const Halves op(shapes[0], shapes[1], settings);
  if (!fits(arguments, op, 3)) return kMismatch;
  const float *parts[2] = {floats(data[0]), floats(data[1])};
  float *both = output(data[3]);
  parallel_planes(shapes[3], [&](int64_t i) {
    std::memcpy(both + i * op.size, parts[op.part(i)] + op.at(i), op.size * sizeof(float));
  });
  return 0;
}

// Inputs x, settings; outputs a, b: the inverse of merge_channels.
OPERATOR(deal_channels, HalvesSettings, "NCHW S -> NAHW NBHW") {
  const Halves op(shapes[2], shapes[3], settings);
  if (!fits(arguments, op, 0)) return kMismatch;
  const float *both = floats(data[0]);
  float *parts[2] = {output(data[2]), output(data[3])};
  parallel_planes(shapes[0], [&](int64_t i) {
    std::memcpy(parts[op.part(i)] + op.at(i), both + i * op.size, op.size * sizeof(float));
  });
  return 0;
}

// Inputs a, b; output y = relu(a + b).
OPERATOR(add_relu_forward, NoSettings, "NCHW NCHW -> NCHW") {
  const float *a = floats(data[0]), *b = floats(data[1]);
  float *y = output(data[2]);
  for_elements(shapes[0], [&](int64_t at, auto count) {
    put(y + at, activate<kRelu>(get(a + at, count) + get(b + at, count)), count);
  });
  return 0;
}

// Inputs y, dy; output: the gradient of a and of b.
OPERATOR(add_relu_backward, NoSettings, "NCHW NCHW -> NCHW") {
  const float *y = floats(data[0]), *dy = floats(data[1]);
  float *gradient = output(data[2]);
  for_elements(shapes[0], [&](int64_t at, auto count) {
    put(gradient + at, get(dy + at, count) * slope<kRelu>(get(y + at, count)), count);
  });
  return 0;
}

// Input x; output (N, C, 1, 1): the mean of each channel.
OPERATOR(mean_forward, NoSettings, "NCHW -> NC11") {
  mean_of_planes(shapes[0], floats(data[0]), output(data[1]));
  return 0;
}

// Inputs x (for its shape), dy; output dx.
OPERATOR(mean_backward, NoSettings, "NCHW NC11 -> NCHW") {
  const float *dy = floats(data[1]);
  float *dx = output(data[2]);
  const int64_t size = shapes[0][2] * shapes[0][3];
  parallel_planes(shapes[0], [&](int64_t i) { std::fill(dx + i * size, dx + (i + 1) * size, dy[i] / size); });
  return 0;
}

// Inputs x; weight and bias of the layer that reduces, and of the layer that expands; outputs y, the means, the hidden
// layer, the gate's input.
OPERATOR(squeeze_forward, NoSettings, "NCHW RC11 R CR11 C -> NCHW NC NR NC") {
  const MapShape shape(shapes[0]);
  const SqueezeLayers layers{shape.channels,  shapes[2][0],    floats(data[1]),
                             floats(data[2]), floats(data[3]), floats(data[4])};
  const float *x = floats(data[0]);
  float *y = output(data[5]), *means = output(data[6]), *z = output(data[8]);
  mean_of_planes(shape, x, means);
  squeeze_gate(layers, shape.batch, means, output(data[7]), z);
  scale_by_gate(shape, x, z, y);
  return 0;
}

// Inputs x, dy, the two weights, the means, the hidden layer, the gate's input; outputs dx, and the gradients of weight
// and bias of both layers.
OPERATOR(squeeze_backward, NoSettings, "NCHW NCHW RC11 CR11 NC NR NC -> NCHW RC11 R CR11 C") {
  const MapShape shape(shapes[0]);
  const int64_t batch = shape.batch, channels = shape.channels, hidden = shapes[5][1], size = shape.size;
  const SqueezeLayers layers{channels, hidden, floats(data[2]), nullptr, floats(data[3]), nullptr};
  const float *x = floats(data[0]), *dy = floats(data[1]), *z = floats(data[6]);
  float *dx = output(data[7]);
  std::vector<float> dz(batch * channels), dmeans(batch * channels), dhidden(batch * hidden);
  parallel_planes(shape, [&](int64_t i) { dz[i] = dot(dy + i * size, x + i * size, size) * hard_sigmoid_slope(z[i]); });
  squeeze_gradients(layers, batch, floats(data[5]), dz.data(), dhidden.data(), dmeans.data());
  layer_gradients(batch, channels, hidden, floats(data[4]), dhidden.data(), output(data[8]), output(data[9]));
  layer_gradients(batch, hidden, channels, floats(data[5]), dz.data(), output(data[10]), output(data[11]));
  parallel_planes(shape, [&](int64_t i) {
    const float factor = hard_sigmoid(z[i]), each = dmeans[i] / static_cast<float>(size);
    sweep(size,
          [&](int64_t j, auto count) { put(dx + i * size + j, get(dy + i * size + j, count) * factor + each, count); });
  });
  return 0;
}

// Inputs x; weight and norm (gamma, beta, moving mean and variance) of each of the three convolutions; settings.
// Outputs y; the outputs of the first 1x1 convolution, of the depthwise one with its norm, and of the second 1x1
// convolution; mean and inverse of each norm.
OPERATOR(shuffle_unit_forward, ShuffleUnitSettings,
         "NCHW BB11 B B B B B1KK B B B B BB11 B B B B S -> NCHW NBHW NBHW NBHW B B B B B B") {
  const ShuffleUnit op(shapes[0], settings);
  if (!fits(arguments, op, 1)) return kMismatch;
  const float *x = floats(data[0]);
  float *y = output(data[17]), *z1 = output(data[18]), *z2 = output(data[19]), *z3 = output(data[20]);
  const BranchProduct product{op.half};
  product.forward(floats(data[1]), op.part_of_input(x, 1), channels_of(op.half, z1));
  run(DepthwiseForward{op.depthwise(shapes[6]), z1, floats(data[6]), norm_inputs(data + 2, settings.first),
                       norm_inputs(data + 7, settings.second), z2, output(data[21]), output(data[22]), output(data[23]),
                       output(data[24])});
  product.forward(floats(data[11]), channels_of<const float>(op.half, z2), channels_of(op.half, z3));
  normalise_maps(norm_inputs(data + 12, settings.third), op.half, z3, op.part_of_output(y, 1), output(data[25]),
                 output(data[26]));
  copy_channels(op.half, op.part_of_input(x, 0), op.part_of_output(y, 0));
  return 0;
}

// Inputs x, dy; weight, gamma, beta, mean, inverse of each convolution; the three outputs that shuffle_unit_forward
// stored; settings. Outputs dx; the gradients of weight, gamma and beta of each convolution.
OPERATOR(shuffle_unit_backward, ShuffleUnitSettings,
         "NCHW NCHW BB11 B B B B B1KK B B B B BB11 B B B B NBHW NBHW NBHW S -> NCHW BB11 B B B1KK B B BB11 B B") {
  const ShuffleUnit op(shapes[0], settings);
  if (!fits(arguments, op, 2)) return kMismatch;
  const float *x = floats(data[0]), *dy = floats(data[1]);
  const float *z1 = floats(data[17]), *z2 = floats(data[18]), *z3 = floats(data[19]);
  float *dx = output(data[21]);
  float *dz = scratch(kFirstMapSlot, op.half.elements()), *other = scratch(kSecondMapSlot, op.half.elements());
  const BranchProduct product{op.half};
  norm_gradients(norm_values(data + 13, settings.third), op.half, z3, op.part_of_output(dy, 1), dz, output(data[29]),
                 output(data[30]));
  product.backward(floats(data[12]), channels_of(op.half, z2), channels_of<const float>(op.half, dz),
                   channels_of(op.half, other), output(data[28]));
  run(DepthwiseBackward{op.depthwise(shapes[7]), z1, other, floats(data[7]), norm_values(data + 3, settings.first),
                        norm_values(data + 8, settings.second), dz, output(data[23]), output(data[24]),
                        output(data[25]), output(data[26]), output(data[27])});
  product.backward(floats(data[2]), op.part_of_input(x, 1), channels_of<const float>(op.half, dz),
                   op.part_of_input(dx, 1), output(data[22]));
  copy_channels(op.half, op.part_of_output(dy, 0), op.part_of_input(dx, 0));
  return 0;
}

// For inference. Inputs as of shuffle_unit_forward; output y.
OPERATOR(shuffle_unit_inference, ShuffleUnitSettings, "NCHW BB11 B B B B B1KK B B B B BB11 B B B B S -> NCHW") {
  const ShuffleUnit op(shapes[0], settings);
  if (!fits(arguments, op, 1)) return kMismatch;
  const float *x = floats(data[0]);
  float *y = output(data[17]);
  const Depthwise depthwise = op.depthwise(shapes[6]);
  const Branch branch{depthwise,
                      op.half.channels,
                      op.half.channels,
                      floats(data[1]),
                      floats(data[6]),
                      floats(data[11]),
                      norm_inputs(data + 2, settings.first),
                      norm_inputs(data + 7, settings.second),
                      norm_inputs(data + 12, settings.third),
                      SqueezeLayers{}};
  branch.run(op.part_of_input(x, 1), op.part_of_output(y, 1), false);
  copy_channels(op.half, op.part_of_input(x, 0), op.part_of_output(y, 0));
  return 0;
}

// For inference. Inputs x; weight and norm (gamma, beta, moving mean and variance) of the 1x1 expansion and of the
// depthwise convolution; weight and bias of both layers of Squeeze-and-Excitation; weight and norm of the 1x1
// projection; settings. Output y. The inputs of layers that do not exist have one element.
OPERATOR(inverted_residual, InvertedResidualSettings,
         "NCHW EF11 E E E E G1KK G G G G RQ11 R PT11 P OL11 O O O O S -> NOhw") {
  const int64_t channels = shapes[0][1], hidden = shapes[6][0], out = shapes[15][0];
  const bool expands = settings.first.present != 0, squeezes = settings.squeezes != 0;
  const Depthwise depthwise(shapes[0], hidden, shapes[6][2], static_cast<int64_t>(settings.stride));
  const int64_t reduced = squeezes ? shapes[11][0] : 1;
  if (!arguments.has_shape(1, {expands ? hidden : 1, expands ? channels : 1, 1, 1}) ||
      !arguments.has_shape(6, {expands ? hidden : channels, 1, depthwise.kernel, depthwise.kernel}) ||
      !arguments.has_shape(11, {reduced, squeezes ? hidden : 1, 1, 1}) ||
      !arguments.has_shape(13, {squeezes ? hidden : 1, reduced, 1, 1}) ||
      !arguments.has_shape(15, {out, hidden, 1, 1}) ||
      !arguments.has_shape(21, {shapes[0][0], out, depthwise.out_height, depthwise.out_width}))
    return kMismatch;
  SqueezeLayers squeeze{};
  if (squeezes) squeeze = {hidden, reduced, floats(data[11]), floats(data[12]), floats(data[13]), floats(data[14])};
  const Branch branch{depthwise,
                      channels,
                      out,
                      floats(data[1]),
                      floats(data[6]),
                      floats(data[15]),
                      norm_inputs(data + 2, settings.first),
                      norm_inputs(data + 7, settings.second),
                      norm_inputs(data + 16, settings.third),
                      squeeze};
  branch.run(channels_of(shapes[0], floats(data[0])), channels_of(shapes[21], output(data[21])),
             settings.residual != 0);
  return 0;
}

// Inputs x, weight, settings; output y.
OPERATOR(dense_forward, DenseSettings, "NCHW OCKK S -> NOhw") {
  const auto x = patches(floats(data[0]), shapes[0], shapes[1], settings);
  if (!arguments.has_shape(3, {shapes[0][0], shapes[3][1], x.out_height, x.out_width})) return kMismatch;
  const int64_t out = shapes[1][0], size = x.out_size();
  const Weights weights(floats(data[1]), out, x.rows(), x.rows(), 1, shapes[0][0] * size);
  multiply(weights, x, Channels<float>{output(data[3]), size, out * size, size}, shapes[0][0] * size);
  return 0;
}

// For inference. Inputs x, weight, gamma, beta, moving mean and variance, settings; output y.
OPERATOR(dense_norm, DenseNormSettings, "NCHW OCKK O O O O S -> NOhw") {
  const auto x = patches(floats(data[0]), shapes[0], shapes[1], settings.convolution);
  if (!arguments.has_shape(7, {shapes[0][0], shapes[7][1], x.out_height, x.out_width})) return kMismatch;
  const int64_t out = shapes[1][0], size = x.out_size();
  const Weights weights(floats(data[1]), out, x.rows(), norm_inputs(data + 2, settings.norm), 0, shapes[0][0] * size);
  multiply(weights, x, Channels<float>{output(data[7]), size, out * size, size}, shapes[0][0] * size);
  return 0;
}

// Inputs x, dy, weight, settings; output dweight.
OPERATOR(dense_weight_gradient, DenseSettings, "NCHW NOhw OCKK S -> OCKK") {
  const auto x = patches(floats(data[0]), shapes[0], shapes[2], settings);
  if (!arguments.has_shape(1, {shapes[0][0], shapes[1][1], x.out_height, x.out_width})) return kMismatch;
  const int64_t out = shapes[2][0], size = x.out_size();
  multiply_backward(nullptr, x, x.rows(), Channels<const float>{floats(data[1]), size, out * size, size}, out, {},
                    shapes[0][0] * size, output(data[4]));
  return 0;
}

// Inputs x, dy, weight, settings; output dx.
OPERATOR(dense_input_gradient, DenseSettings, "NCHW NOhw OCKK S -> NCHW") {
  const auto dx = patches(output(data[4]), shapes[0], shapes[2], settings);
  if (!arguments.has_shape(1, {shapes[0][0], shapes[1][1], dx.out_height, dx.out_width})) return kMismatch;
  const int64_t out = shapes[2][0], size = dx.out_size(), image = shapes[0][1] * shapes[0][2] * shapes[0][3];
  const Channels<const float> dy{floats(data[1]), size, out * size, size};
  const Weights transposed(floats(data[2]), dx.rows(), out, 1, dx.rows(), shapes[0][0] * size);
  parallel(shapes[0][0], [&](int64_t n) {
    std::fill(dx.images + n * image, dx.images + (n + 1) * image, 0.0f);
    float *panel = scratch(kPanelSlot, out * kColumns), *taps = scratch(kOtherPanelSlot, dx.rows() * kColumns);
    for (int64_t from = n * size; from < (n + 1) * size; from += kColumns) {
      const int64_t count = std::min(kColumns, (n + 1) * size - from);
      dy.pack(out, from, count, panel, out);
      multiply_panels(transposed, 0, transposed.blocks(), panel, out, 0, count, {taps, kColumns, 0, kColumns});
      dx.unpack(from, count, taps);
    }
  });
  return 0;
}

// The weights, the gradients, the velocities, weight decay and factor of the learning rate of each weight, the learning
// rate, settings; the output is 0. Updates weights and velocities in place: v = momentum v + g + decay w, then
// w -= rate v, or with Nesterov w -= rate (g + decay w + momentum v).
extern "C" int sgd(int count, void **data, int *ranks, int64_t **shapes, const char **types, void *, void *) {
  const Arguments arguments{"sgd", count, ranks, shapes, types};
  constexpr int kSettings = sizeof(SgdSettings) / sizeof(float);
  const int weights = (count - 4) / 3;
  struct Piece {
    int weight;
    int64_t from, to;
  };
  constexpr int64_t kPiece = 1 << 14;  // elements of a task
  std::vector<Piece> pieces;
  if (count != 3 * weights + 4)
    return arguments.complain("wrong number of arguments", "3 for each weight, and 4"), kMismatch;
  for (int i = 0; i < count; i++)
    if (std::strcmp(types[i], "float32") != 0)
      return arguments.complain("argument " + std::to_string(i) + " is " + types[i], "float32"), kMismatch;
  if (!arguments.has_shape(3 * weights, {weights, 2}) || !arguments.has_shape(3 * weights + 2, {kSettings}))
    return kMismatch;
  for (int w = 0; w < weights; w++) {
    for (const int other : {weights + w, 2 * weights + w})
      if (ranks[other] != ranks[w] || !std::equal(shapes[w], shapes[w] + ranks[w], shapes[other]))
        return arguments.complain("argument " + std::to_string(other) + " has another shape", "that of its weight"),
               kMismatch;
    int64_t size = 1;
    for (int d = 0; d < ranks[w]; d++) size *= shapes[w][d];
    for (int64_t from = 0; from < size; from += kPiece) pieces.push_back({w, from, std::min(size, from + kPiece)});
  }
  const float *rules = floats(data[3 * weights]);
  SgdSettings settings;
  std::memcpy(&settings, data[3 * weights + 2], sizeof(settings));
  parallel(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
    const auto [w, from, to] = pieces[i];
    float *weight = output(data[w]) + from, *velocity = output(data[2 * weights + w]) + from;
    const float *gradient = floats(data[weights + w]) + from;
    const float decay = rules[2 * w], rate = *floats(data[3 * weights + 1]) * rules[2 * w + 1];
    sweep(to - from, [&](int64_t at, auto part) {
      const Vec old = get(weight + at, part), g = get(gradient + at, part) + old * decay;
      const Vec v = get(velocity + at, part) * settings.momentum + g;
      put(velocity + at, v, part);
      put(weight + at, old - (settings.nesterov != 0 ? g + v * settings.momentum : v) * rate, part);
    });
  });
  *output(data[count - 1]) = 0;
  return 0;
}
