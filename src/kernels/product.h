// Matrix products: 1x1 convolution, and dense convolution with few input channels.
#pragma once

#include <algorithm>
#include <cstdint>

extern "C" int dnnl_sgemm(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                          const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

namespace {

// The patches for `rows` output rows form a matrix (in_channels * kernel^2, rows * out_width).
struct Patches {
  int64_t channels, height, width, kernel, stride, pad, out_width;

  template <class Visit>
  void visit(int64_t from_row, int64_t rows, Visit visit_row) const {
    for (int64_t c = 0; c < channels; c++)
      for (int64_t ky = 0; ky < kernel; ky++)
        for (int64_t kx = 0; kx < kernel; kx++)
          for (int64_t r = 0; r < rows; r++) {
            const int64_t y = (from_row + r) * stride + ky - pad;
            // For outputs from `begin` to `end`, this tap is inside the image.
            const int64_t begin = std::min(out_width, std::max<int64_t>(0, (pad - kx + stride - 1) / stride));
            const int64_t last = width - 1 + pad - kx;
            const int64_t end = y < 0 || y >= height || last < 0 ? begin : std::min(out_width, last / stride + 1);
            const int64_t row = (((c * kernel + ky) * kernel + kx) * rows + r) * out_width;
            visit_row(row, begin, std::max(begin, end), (c * height + y) * width + kx - pad);
          }
  }

  void gather(const float *image, int64_t from_row, int64_t rows, float *matrix) const {
    visit(from_row, rows, [&](int64_t row, int64_t begin, int64_t end, int64_t at) {
      float *to = matrix + row;
      std::fill(to, to + begin, 0.0f);
      if (stride == 1) {
        std::copy(image + at + begin, image + at + end, to + begin);
      } else {
        for (int64_t x = begin; x < end; x++) to[x] = image[at + x * stride];
      }
      std::fill(to + end, to + out_width, 0.0f);
    });
  }

  void scatter(const float *matrix, int64_t from_row, int64_t rows, float *image) const {
    visit(from_row, rows, [&](int64_t row, int64_t begin, int64_t end, int64_t at) {
      for (int64_t x = begin; x < end; x++) image[at + x * stride] += matrix[row + x];
    });
  }
};

struct Dense {
  int64_t batch, out_channels, out_height, depth, tile;
  Patches patches;

  Dense(const int64_t *in, const int64_t *weight, const float *settings)
      : batch(in[0]), out_channels(weight[0]), depth(weight[1] * weight[2] * weight[3]) {
    const int64_t stride = static_cast<int64_t>(settings[0]), pad = static_cast<int64_t>(settings[1]);
    out_height = (in[2] + 2 * pad - weight[2]) / stride + 1;
    patches = {in[1], in[2], in[3], weight[2], stride, pad, (in[3] + 2 * pad - weight[3]) / stride + 1};
    // The number of rows per tile is chosen so that their patches fit into the second-level cache.
    tile = std::min(out_height, std::max<int64_t>(1, 32768 / (depth * patches.out_width)));
  }

  int64_t in_size() const { return patches.channels * patches.height * patches.width; }
  int64_t out_plane() const { return out_height * patches.out_width; }

  // Calls body(first row, columns of the matrix) for each tile of rows.
  template <class Body>
  void for_tiles(Body body) const {
    for (int64_t y = 0; y < out_height; y += tile) {
      const int64_t rows = std::min(tile, out_height - y);
      body(y, rows, rows * patches.out_width);
    }
  }
};

struct Pointwise {
  int64_t batch, in_channels, out_channels, groups, size, in, out;  // in, out: channels per group

  Pointwise(const int64_t *x, const int64_t *weight)
      : batch(x[0]), in_channels(x[1]), out_channels(weight[0]), size(x[2] * x[3]) {
    in = weight[1];
    groups = in_channels / in;
    out = out_channels / groups;
  }
};

}  // namespace
