// The settings of the operators. An operator with settings has one more input: a float32 vector with the members of
// its struct. settings.py reads this file, so the order of the members and the numbers of the activations are defined
// here only.
#pragma once

namespace {

enum Activation { kNone, kRelu, kRelu6, kHardSwish };

struct NoSettings {};

struct NormSettings {
  float epsilon, momentum, activation;  // momentum: the share of the old moving statistics
  float present, batch_statistics;      // conditions: 0 or 1
};

struct DepthwiseSettings {
  float stride;
  float keep;            // condition: the output starts with the convolution's input, as in GhostNet's modules
  float shuffle_groups;  // of the channel shuffle of the input, as in ShuffleNetV1; 1: no shuffle
  NormSettings before, after;
};

struct DenseSettings {
  float stride, padding;
};

struct DenseNormSettings {
  DenseSettings convolution;
  NormSettings norm;
};

struct SgdSettings {
  float momentum;
  float nesterov;  // condition
};

struct HalvesSettings {
  float interleaved;  // condition
};

struct InvertedResidualSettings {
  float stride, residual, squeezes;   // the last two are conditions: x is added to the output; there is an SE
  NormSettings first, second, third;  // the first one is not present if there is no 1x1 expansion
};

struct ShuffleUnitSettings {
  float interleaved;  // condition: even and odd channels of the input are its halves, not the first and the last
  NormSettings first, second, third;
};

}  // namespace
