// Float32 NCHW kernels for training small CNNs on a CPU: BatchNorm with activation, depthwise convolution with
// BatchNorm and activation before and after it, 1x1 convolution (a matrix product of the oneDNN in MindSpore's wheel),
// dense KxK convolution with few input channels, pooling, and others. Each function below `extern "C"` is a MindSpore
// operator. `data` has its inputs and outputs in the order that operators.py gives. If the operator has settings, they
// are its last input, as float32.
//
// No result depends on the number of threads: a single task computes each output, in a fixed order.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#ifdef __AVX__
#include <immintrin.h>
#endif

extern "C" int dnnl_sgemm(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k, float alpha,
                          const float *a, int64_t lda, const float *b, int64_t ldb, float beta, float *c, int64_t ldc);

namespace {

// ---------------------------------------------------------------------------------------------------------- threads

class Pool {
 public:
  static Pool &instance() {
    static Pool *pool = new Pool;  // never destroyed: its threads may outlive main
    return *pool;
  }

  void set_threads(int count) {
    std::lock_guard<std::mutex> lock(busy_);
    wanted_ = count - 1;
  }

  // Calls task(0) to task(count - 1), distributed over the threads. While the pool is busy, another caller runs its
  // tasks on its own thread.
  void run(int64_t count, const std::function<void(int64_t)> &task) {
    std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
    if (!lock.owns_lock() || count < 2 || wanted_ < 1) {
      for (int64_t i = 0; i < count; i++) task(i);
      return;
    }
    start_workers();
    {
      std::lock_guard<std::mutex> guard(mutex_);
      task_ = &task;
      count_ = count;
      next_ = 0;
      pending_ = started_;
      round_++;
    }
    wake_.notify_all();
    work();
    for (int spin = 0; pending_.load(std::memory_order_acquire) > 0; spin++) {
      if (spin < 2000) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

 private:
  void start_workers() {
    if (process_ != getpid()) {  // a forked child process does not have its parent's threads
      process_ = getpid();
      started_ = 0;
    }
    for (; started_ < wanted_; started_++) std::thread([this, seen = round_.load()] { serve(seen); }).detach();
  }

  void serve(uint64_t seen) {
    for (;;) {
      for (int spin = 0; spin < 2000 && round_.load(std::memory_order_acquire) == seen; spin++) pause();
      if (round_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> guard(mutex_);
        wake_.wait(guard, [&] { return round_ != seen; });
      }
      seen = round_;
      work();
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  void work() {
    for (int64_t i; (i = next_.fetch_add(1)) < count_;) (*task_)(i);
  }

  static void pause() {
#ifdef __SSE2__
    __builtin_ia32_pause();
#endif
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int> pending_{0};
  const std::function<void(int64_t)> *task_ = nullptr;
  int64_t count_ = 0;
  int wanted_ = 0, started_ = 0;
  pid_t process_ = 0;
};

void parallel(int64_t count, const std::function<void(int64_t)> &task) { Pool::instance().run(count, task); }

// Working memory of the calling thread, reused between calls. Buffers in use at the same time need different slots.
float *scratch(int slot, int64_t size) {
  static thread_local std::vector<float> buffers[4];
  if (static_cast<int64_t>(buffers[slot].size()) < size) buffers[slot].resize(size);
  return buffers[slot].data();
}

// ---------------------------------------------------------------------------------------------------------- vectors

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Vec load(const float *p) { return *reinterpret_cast<const Vec *>(p); }
inline void store(float *p, Vec v) { *reinterpret_cast<Vec *>(p) = v; }
inline Vec all(float value) { return Vec{} + value; }

inline Vec load_first(const float *p, int64_t count) {
  Vec v{};
  std::memcpy(&v, p, count * sizeof(float));
  return v;
}

inline void store_first(float *p, Vec v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(v));
#elif defined(__AVX__)
  static const int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  _mm256_maskstore_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(kMask + 8 - count)), (__m256)v);
#else
  std::memcpy(p, &v, count * sizeof(float));
#endif
}

inline double sum(Vec v) {
  double total = 0;
  for (int64_t i = 0; i < kLanes; i++) total += v[i];
  return total;
}

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Calls body(position, count) for each full vector of `size` elements, with count = kLanes, then for the remainder.
template <class Body>
inline void sweep(int64_t size, Body body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, std::integral_constant<int64_t, kLanes>{});
  if (i < size) body(i, size - i);
}

inline Vec get(const float *p, std::integral_constant<int64_t, kLanes>) { return load(p); }
inline Vec get(const float *p, int64_t count) { return load_first(p, count); }
inline void put(float *p, Vec v, std::integral_constant<int64_t, kLanes>) { store(p, v); }
inline void put(float *p, Vec v, int64_t count) { store_first(p, v, count); }

// ------------------------------------------------------------------------------------------------------ activations

enum Activation { kNone, kRelu, kRelu6, kHardSwish };

template <int A>
inline Vec activate(Vec z) {
  const Vec zero{}, six = all(6);
  if constexpr (A == kNone) return z;
  if constexpr (A == kHardSwish) {
    Vec t = z + 3;
    t = t > zero ? t : zero;
    t = t < six ? t : six;
    return z * t * (1.0f / 6);
  }
  // This comparison keeps NaN, as MindSpore's operators do.
  z = z < zero ? zero : z;
  if constexpr (A == kRelu6) z = z > six ? six : z;
  return z;
}

// The derivative of activate().
template <int A>
inline Vec slope(Vec z) {
  const Vec zero{}, one = all(1);
  if constexpr (A == kNone) return one;
  if constexpr (A == kRelu) return z > zero ? one : zero;
  if constexpr (A == kRelu6) return (z > zero) & (z < all(6)) ? one : zero;
  if constexpr (A == kHardSwish) {
    const Vec inside = z * (1.0f / 3) + 0.5f;
    return z > all(3) ? one : (z < all(-3) ? zero : inside);
  }
}

template <class Body>
inline void with_activation(int activation, Body body) {
  switch (activation) {
    case kNone: return body(std::integral_constant<int, kNone>{});
    case kRelu: return body(std::integral_constant<int, kRelu>{});
    case kRelu6: return body(std::integral_constant<int, kRelu6>{});
    default: return body(std::integral_constant<int, kHardSwish>{});
  }
}

// -------------------------------------------------------------------------------------------------------- BatchNorm

// Shifted sums for mean and variance. Without the shift, a large mean would cost precision.
struct Moments {
  float shift = 0;
  double total = 0, squares = 0, count = 0;

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
    for (; i < size; i++) {
      const float d = plane[i] - shift;
      s[0][0] += d;
      q[0][0] += d * d;
    }
    total += sum(s[0] + s[1]);
    squares += sum(q[0] + q[1]);
    count += size;
  }

  double mean() const { return shift + total / count; }
  double variance() const { return std::max(0.0, squares / count - total / count * (total / count)); }
};

// BatchNorm with activation, for one channel.
struct Norm {
  float gamma, beta, mean, inverse;  // inverse: 1 / standard deviation
  int activation;

  float scale() const { return gamma * inverse; }
  float shift() const { return beta - mean * scale(); }

  // y = act(norm(x)) for one row of any length.
  void apply(const float *x, float *y, int64_t size) const {
    const Vec a = all(scale()), b = all(shift());
    with_activation(activation, [&](auto kind) {
      sweep(size, [&](int64_t i, auto count) { put(y + i, activate<kind.value>(get(x + i, count) * a + b), count); });
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

  // Computes the statistics of channel `c`, updates its moving statistics, and stores `mean` and `inverse` for the
  // backward pass.
  Norm finish(int64_t c, const Moments &moments, float *mean, float *inverse) const {
    double m = moving_mean[c], v = moving_variance[c];
    if (batch_statistics) {
      m = moments.mean();
      v = moments.variance();
      const double unbiased = moments.count > 1 ? v * moments.count / (moments.count - 1) : v;
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
  double sum_g = 0, sum_gx = 0;  // sums of g and g * (x - mean); g: gradient of the activation's input

  // Adds to the sums. Also writes the gradient to `g` unless it is null; `g` may be `dy` itself.
  void add(const Norm &norm, const float *x, const float *dy, float *g, int64_t size) {
    const Vec a = all(norm.scale()), b = all(norm.shift()), mean = all(norm.mean);
    Vec s{}, q{};
    with_activation(norm.activation, [&](auto kind) {
      sweep(size, [&](int64_t i, auto count) {
        const Vec value = get(x + i, count);
        const Vec gradient = get(dy + i, count) * slope<kind.value>(value * a + b);
        if (g) put(g + i, gradient, count);
        s += gradient;
        q += gradient * (value - mean);  // beyond the end, dy and so `gradient` are 0
      });
    });
    sum_g += sum(s);
    sum_gx += sum(q);
  }

  float gamma(const Norm &norm) const { return static_cast<float>(sum_gx * norm.inverse); }
  float beta() const { return static_cast<float>(sum_g); }
};

// dx = scale * (g - mean(g) - (x - mean) * inverse^2 * mean(g * (x - mean))). The last two terms exist with batch
// statistics only.
struct NormInputGradient {
  Vec scale, mean, offset, factor;

  NormInputGradient(const Norm &norm, const NormGradient &sums, double count, bool batch_statistics) {
    scale = all(norm.scale());
    mean = all(norm.mean);
    offset = all(batch_statistics ? static_cast<float>(sums.sum_g / count) : 0.0f);
    factor = all(batch_statistics ? static_cast<float>(sums.sum_gx / count * norm.inverse * norm.inverse) : 0.0f);
  }

  Vec operator()(Vec x, Vec g) const { return scale * (g - offset - (x - mean) * factor); }
};

// ------------------------------------------------------------------------------------------------ depthwise planes

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
  int64_t at(int64_t y, int64_t kx) const {
    return stride == 1 ? y * row + kx : (y * 2 + kx % 2) * row + kx / 2;
  }

  // Copies one plane into the layout. The caller has filled the borders.
  void fill(float *to, const float *plane) const {
    for (int64_t y = 0; y < height; y++) {
      const float *from = plane + y * width;
      if (stride == 1) {
        std::memcpy(to + at(y + pad, pad), from, width * sizeof(float));
        continue;
      }
      float *even = to + at(y + pad, pad), *odd = to + at(y + pad, pad + 1);
      for (int64_t x = 0; x < width / 2; x++) {
        even[x] = from[2 * x];
        odd[x] = from[2 * x + 1];
      }
      if (width % 2) even[width / 2] = from[width - 1];
    }
  }

  // Copies a plane back out of the layout; for stride 2 only.
  void take(const float *from, float *plane) const {
    for (int64_t y = 0; y < height; y++) {
      const float *even = from + at(y + pad, pad), *odd = from + at(y + pad, pad + 1);
      float *to = plane + y * width;
      for (int64_t x = 0; x < width / 2; x++) {
        to[2 * x] = even[x];
        to[2 * x + 1] = odd[x];
      }
      if (width % 2) to[width - 1] = even[width / 2];
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

// dw[ky][kx] += sum over y, x of d[y][x] * in[y * stride + ky][x * stride + kx]. Rows of d have `d_row`
// elements; the elements after the last output are 0.
template <int K, int S>
void correlate(const Padded &layout, const float *in, const float *d, int64_t d_row, int64_t height, double *dw) {
  constexpr int kAtOnce = K == 3 ? 3 : 1;  // number of kernel rows whose sums fit into the registers
  for (int from = 0; from < K; from += kAtOnce) {
    Vec sums[kAtOnce][K] = {};
    for (int64_t y = 0; y < height; y++) {
      for (int64_t x = 0; x < d_row; x += kLanes) {
        const Vec v = load(d + y * d_row + x);
#pragma GCC unroll 4
        for (int i = 0; i < kAtOnce; i++) {
          const float *row = in + layout.at(y * S + from + i, 0) + x;
#pragma GCC unroll 8
          for (int kx = 0; kx < K; kx++)
            sums[i][kx] += v * load(row + (S == 1 ? kx : (kx % 2) * layout.row + kx / 2));
        }
      }
    }
    for (int i = 0; i < kAtOnce; i++)
      for (int kx = 0; kx < K; kx++) dw[(from + i) * K + kx] += sum(sums[i][kx]);
  }
}

// 3x3 max pooling at stride 2 of one plane: out[y][x] = maximum of its window. The layout's borders are -infinity.
void max_plane(const Padded &layout, const float *in, float *out, int64_t height, int64_t width) {
  for (int64_t y = 0; y < height; y++) {
    sweep(width, [&](int64_t x, auto count) {
      Vec largest = load(in + layout.at(2 * y, 0) + x);
      for (int tap = 1; tap < 9; tap++) {
        const Vec v = load(in + layout.at(2 * y + tap / 3, tap % 3) + x);
        largest = v > largest ? v : largest;
      }
      put(out + y * width + x, largest, count);
    });
  }
}

// Adds the gradient of each output to the first maximum of its window. `to` has the same layout as `in`.
void max_plane_gradient(const Padded &layout, const float *in, const float *dy, float *to, int64_t height,
                        int64_t width) {
  for (int64_t y = 0; y < height; y++) {
    sweep(width, [&](int64_t x, auto count) {
      Vec largest = load(in + layout.at(2 * y, 0) + x);
      for (int tap = 1; tap < 9; tap++) {
        const Vec v = load(in + layout.at(2 * y + tap / 3, tap % 3) + x);
        largest = v > largest ? v : largest;
      }
      Vec left = get(dy + y * width + x, count);
      for (int tap = 0; tap < 9; tap++) {
        const int64_t at = layout.at(2 * y + tap / 3, tap % 3) + x;
        const auto chosen = load(in + at) == largest;
        store(to + at, load(to + at) + (chosen ? left : Vec{}));
        left = chosen ? Vec{} : left;
      }
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

// -------------------------------------------------------------------------------- depthwise convolution between norms

struct Depthwise {
  int64_t batch, channels, height, width, kernel, stride, out_height, out_width;
  bool keep;      // the output starts with the convolution's input, as in GhostNet's modules
  int64_t runs;   // number of groups of the channel shuffle of the input, as in ShuffleNetV1; 1: no shuffle

  Depthwise(const int64_t *in, const int64_t *weight, const float *settings)
      : batch(in[0]), channels(in[1]), height(in[2]), width(in[3]), kernel(weight[2]) {
    stride = static_cast<int64_t>(settings[0]);
    keep = settings[1] != 0;
    runs = static_cast<int64_t>(settings[2]);
    out_height = (height - 1) / stride + 1;
    out_width = (width - 1) / stride + 1;
  }

  int64_t in_size() const { return height * width; }
  int64_t out_size() const { return out_height * out_width; }
  int64_t source(int64_t c) const { return c % runs * (channels / runs) + c / runs; }
  int64_t in_at(int64_t n, int64_t c) const { return (n * channels + source(c)) * in_size(); }
  int64_t out_at(int64_t n, int64_t c) const {
    return (keep ? n * 2 * channels + channels + c : n * channels + c) * out_size();
  }
  int64_t kept_at(int64_t n, int64_t c) const { return (n * 2 * channels + c) * out_size(); }
};

NormInputs norm_inputs(void **data, const float *settings) {
  return {static_cast<const float *>(data[0]), static_cast<const float *>(data[1]), static_cast<float *>(data[2]),
          static_cast<float *>(data[3]),       settings[0],                         settings[1],
          static_cast<int>(settings[2]),       settings[3] != 0,                    settings[4] != 0};
}

// Positions in the settings: first those of Depthwise, then those of its first and of its second norm.
constexpr int kFirstNorm = 3, kSecondNorm = 8;

const float *floats(void *data) { return static_cast<const float *>(data); }
float *output(void *data) { return static_cast<float *>(data); }

// -------------------------------------------------------------------------------------------------- dense few channels

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

// ------------------------------------------------------------------------------------------------------ 1x1 products

struct Pointwise {
  int64_t batch, in_channels, out_channels, groups, size, in, out;  // in, out: channels per group

  Pointwise(const int64_t *x, const int64_t *weight)
      : batch(x[0]), in_channels(x[1]), out_channels(weight[0]), size(x[2] * x[3]) {
    in = weight[1];
    groups = in_channels / in;
    out = out_channels / groups;
  }
};

// ---------------------------------------------------------------------------------------------------------- channels

// Two feature maps of the same size, and the feature map with the channels of both.
struct Halves {
  int64_t batch, first, second, size;
  bool interleaved;

  Halves(const int64_t *a, const int64_t *b, const float *settings)
      : batch(a[0]), first(a[1]), second(b[1]), size(a[2] * a[3]), interleaved(settings[0] != 0) {}

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

// Calls task(i) for each plane of a feature map, in parallel; one thread takes several planes if they are small.
void parallel_planes(const int64_t *shape, const std::function<void(int64_t)> &task) {
  const int64_t planes = shape[0] * shape[1], block = 1 + 16384 / (shape[2] * shape[3]);
  parallel((planes + block - 1) / block, [&](int64_t b) {
    for (int64_t i = b * block; i < std::min(planes, (b + 1) * block); i++) task(i);
  });
}

// Calls body(position, count) for each vector of a feature map's elements, distributed over the threads.
template <class Body>
void for_elements(const int64_t *shape, Body body) {
  const int64_t size = shape[2] * shape[3];
  parallel_planes(shape, [&](int64_t i) {
    sweep(size, [&](int64_t j, auto count) { body(i * size + j, count); });
  });
}

}  // namespace

extern "C" {

void set_threads(int count) { Pool::instance().set_threads(count); }

// Inputs x, gamma, beta, moving mean and variance, settings (epsilon, momentum, activation, 1, batch statistics);
// outputs y, mean, inverse.
int norm_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *x = floats(data[0]);
  const NormInputs inputs = norm_inputs(data + 1, floats(data[5]));
  float *y = output(data[6]), *mean = output(data[7]), *inverse = output(data[8]);
  const int64_t batch = shapes[0][0], channels = shapes[0][1], size = shapes[0][2] * shapes[0][3];
  parallel(channels, [&](int64_t c) {
    Moments moments;
    if (inputs.batch_statistics)
      for (int64_t n = 0; n < batch; n++) moments.add(x + (n * channels + c) * size, size);
    const Norm norm = inputs.finish(c, moments, mean, inverse);
    for (int64_t n = 0; n < batch; n++) norm.apply(x + (n * channels + c) * size, y + (n * channels + c) * size, size);
  });
  return 0;
}

// Inputs x, dy, gamma, beta, mean, inverse, settings; outputs dx, dgamma, dbeta.
int norm_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *x = floats(data[0]), *dy = floats(data[1]), *gamma = floats(data[2]), *beta = floats(data[3]);
  const float *mean = floats(data[4]), *inverse = floats(data[5]), *settings = floats(data[6]);
  float *dx = output(data[7]), *dgamma = output(data[8]), *dbeta = output(data[9]);
  const int64_t batch = shapes[0][0], channels = shapes[0][1], size = shapes[0][2] * shapes[0][3];
  parallel(channels, [&](int64_t c) {
    const Norm norm{gamma[c], beta[c], mean[c], inverse[c], static_cast<int>(settings[2])};
    NormGradient sums;
    for (int64_t n = 0; n < batch; n++) {
      const int64_t at = (n * channels + c) * size;
      sums.add(norm, x + at, dy + at, dx + at, size);
    }
    dgamma[c] = sums.gamma(norm);
    dbeta[c] = sums.beta();
    const NormInputGradient gradient(norm, sums, static_cast<double>(batch * size), settings[4] != 0);
    for (int64_t n = 0; n < batch; n++) {
      const int64_t at = (n * channels + c) * size;
      sweep(size, [&](int64_t i, auto count) {
        put(dx + at + i, gradient(get(x + at + i, count), get(dx + at + i, count)), count);
      });
    }
  });
  return 0;
}

// Inputs x, first norm (4), weight, second norm (4), settings; outputs z, mean and inverse of the first norm, mean and
// inverse of the second norm. A missing norm has inputs and outputs with one element.
int depthwise_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *x = floats(data[0]), *weight = floats(data[5]), *settings = floats(data[10]);
  const Depthwise op(shapes[0], shapes[5], settings);
  const NormInputs first = norm_inputs(data + 1, settings + kFirstNorm);
  const NormInputs second = norm_inputs(data + 6, settings + kSecondNorm);
  float *z = output(data[11]);
  const Padded layout(op.height, op.width, op.kernel / 2, op.stride);
  parallel(op.channels, [&](int64_t c) {
    Norm before{}, after{};
    if (first.present) {
      Moments moments;
      if (first.batch_statistics)
        for (int64_t n = 0; n < op.batch; n++) moments.add(x + op.in_at(n, c), op.in_size());
      before = first.finish(op.source(c), moments, output(data[12]), output(data[13]));
    }
    float *padded = scratch(0, layout.size()), *plane = scratch(1, op.in_size());
    std::fill(padded, padded + layout.size(), 0.0f);
    Moments moments;
    for (int64_t n = 0; n < op.batch; n++) {
      const float *source = x + op.in_at(n, c);
      if (first.present) {
        float *normed = op.keep ? z + op.kept_at(n, c) : plane;
        before.apply(source, normed, op.in_size());
        source = normed;
      }
      layout.fill(padded, source);
      float *out = z + op.out_at(n, c);
      with_kernel(op.kernel, op.stride, [&](auto kernel, auto stride) {
        convolve<kernel.value, stride.value>(layout, padded, weight + c * kernel.value * kernel.value, out,
                                             op.out_height, op.out_width);
      });
      if (second.batch_statistics) moments.add(out, op.out_size());
    }
    if (second.present) {
      after = second.finish(c, moments, output(data[14]), output(data[15]));
      for (int64_t n = 0; n < op.batch; n++) after.apply(z + op.out_at(n, c), z + op.out_at(n, c), op.out_size());
    }
  });
  return 0;
}

// Inputs x, dz; gamma, beta, mean, inverse of the first norm; weight; the same four of the second norm; settings.
// Outputs dx; dgamma, dbeta of the first norm; dweight; dgamma, dbeta of the second norm. The kernel recomputes the
// feature maps between x and z.
int depthwise_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *x = floats(data[0]), *dz = floats(data[1]), *weight = floats(data[6]), *settings = floats(data[11]);
  const Depthwise op(shapes[0], shapes[6], settings);
  const float *first = settings + kFirstNorm, *second = settings + kSecondNorm;
  float *dx = output(data[12]), *dweight = output(data[15]);
  const auto norm_of = [&](int input, int64_t c, const float *values) {
    return Norm{floats(data[input])[c], floats(data[input + 1])[c], floats(data[input + 2])[c],
                floats(data[input + 3])[c], static_cast<int>(values[2])};
  };
  const int64_t pad = op.kernel / 2, taps = op.kernel * op.kernel, in_size = op.in_size(), out_size = op.out_size();
  const Padded layout(op.height, op.width, pad, op.stride), spread(op.height, op.width, pad, 1);
  const int64_t d_row = round_up(op.out_width, kLanes);
  parallel(op.channels, [&](int64_t c) {
    const bool has_first = first[3] != 0, has_second = second[3] != 0;
    const int64_t source = op.source(c);
    const Norm before = has_first ? norm_of(2, source, first) : Norm{};
    const Norm after = has_second ? norm_of(7, c, second) : Norm{};
    float *padded = scratch(0, layout.size() + spread.size()), *stuffed = padded + layout.size();
    std::fill(padded, padded + layout.size() + spread.size(), 0.0f);
    float *plane = scratch(1, in_size), *d = scratch(2, op.out_height * d_row);
    float *convolved = has_second ? scratch(3, op.batch * out_size) : nullptr;
    std::fill(d, d + op.out_height * d_row, 0.0f);
    const float *w = weight + c * taps;
    float flipped[25];
    std::reverse_copy(w, w + taps, flipped);
    double dw[25] = {};
    const auto lay_out_input = [&](int64_t n) {
      const float *from = x + op.in_at(n, c);
      if (has_first) {
        before.apply(from, plane, in_size);
        from = plane;
      }
      layout.fill(padded, from);
    };
    with_kernel(op.kernel, op.stride, [&](auto kernel, auto stride) {
      NormGradient after_sums, before_sums;
      for (int64_t n = 0; n < op.batch && has_second; n++) {
        lay_out_input(n);
        float *plane = convolved + n * out_size;
        convolve<kernel.value, stride.value>(layout, padded, w, plane, op.out_height, op.out_width);
        after_sums.add(after, plane, dz + op.out_at(n, c), nullptr, out_size);
      }
      const NormInputGradient through_norm(after, after_sums, static_cast<double>(op.batch * out_size), second[4] != 0);
      const Vec a = all(after.scale()), b = all(after.shift());
      for (int64_t n = 0; n < op.batch; n++) {
        // d is the gradient of the convolution's output.
        const float *from = dz + op.out_at(n, c);
        with_activation(after.activation, [&](auto kind) {
          for (int64_t y = 0; y < op.out_height; y++) {
            const float *row_of_plane = convolved + n * out_size + y * op.out_width, *row = from + y * op.out_width;
            sweep(op.out_width, [&](int64_t i, auto count) {
              Vec g = get(row + i, count);
              if (has_second) {
                const Vec value = get(row_of_plane + i, count);
                g = through_norm(value, g * slope<kind.value>(value * a + b));
              }
              put(d + y * d_row + i, g, count);
            });
          }
        });
        lay_out_input(n);
        correlate<kernel.value, stride.value>(layout, padded, d, d_row, op.out_height, dw);
        // The input's gradient is the convolution of d with the flipped kernel. At stride 2, zeros are inserted between
        // the elements of d.
        for (int64_t y = 0; y < op.out_height; y++) {
          float *to = stuffed + spread.at(y * stride.value + pad, pad);
          for (int64_t i = 0; i < op.out_width; i++) to[i * stride.value] = d[y * d_row + i];
        }
        float *plane = dx + op.in_at(n, c);
        convolve<kernel.value, 1>(spread, stuffed, flipped, plane, op.height, op.width);
        if (op.keep) {
          const float *direct = dz + op.kept_at(n, c);
          sweep(in_size,
                [&](int64_t i, auto count) { put(plane + i, get(plane + i, count) + get(direct + i, count), count); });
        }
        if (has_first) before_sums.add(before, x + op.in_at(n, c), plane, plane, in_size);
      }
      for (int64_t i = 0; i < taps; i++) dweight[c * taps + i] = static_cast<float>(dw[i]);
      if (has_second) {
        output(data[16])[c] = after_sums.gamma(after);
        output(data[17])[c] = after_sums.beta();
      }
      if (has_first) {
        output(data[13])[source] = before_sums.gamma(before);
        output(data[14])[source] = before_sums.beta();
        const NormInputGradient gradient(before, before_sums, static_cast<double>(op.batch * in_size), first[4] != 0);
        for (int64_t n = 0; n < op.batch; n++) {
          const float *from = x + op.in_at(n, c);
          float *own = dx + op.in_at(n, c);
          sweep(in_size, [&](int64_t i, auto count) {
            put(own + i, gradient(get(from + i, count), get(own + i, count)), count);
          });
        }
      }
    });
  });
  return 0;
}

// Inputs x, weight; output y.
int pointwise_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const Pointwise op(shapes[0], shapes[1]);
  const float *x = floats(data[0]), *weight = floats(data[1]);
  float *y = output(data[2]);
  std::atomic<int> status{0};
  // With few images, each is divided into several tasks.
  const int64_t images = op.batch * op.groups, parts = images < 8 ? std::min<int64_t>(8, (op.size + 63) / 64) : 1;
  const int64_t part = round_up((op.size + parts - 1) / parts, 16);
  parallel(images * parts, [&](int64_t i) {
    const int64_t n = i / parts / op.groups, g = i / parts % op.groups, from = i % parts * part;
    const int64_t columns = std::min(part, op.size - from);
    if (columns <= 0) return;
    const int failed = dnnl_sgemm('N', 'N', op.out, columns, op.in, 1, weight + g * op.out * op.in, op.in,
                                  x + (n * op.in_channels + g * op.in) * op.size + from, op.size, 0,
                                  y + (n * op.out_channels + g * op.out) * op.size + from, op.size);
    if (failed) status = failed;
  });
  return status;
}

// Inputs x, dy, weight; outputs dx, dweight.
int pointwise_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const Pointwise op(shapes[0], shapes[2]);
  const float *x = floats(data[0]), *dy = floats(data[1]), *weight = floats(data[2]);
  float *dx = output(data[3]), *dweight = output(data[4]);
  // The first tasks compute the weight's gradient: each sums over the batch for one block of output channels. The other
  // tasks compute the input's gradient, each for one image and group.
  const int64_t rows = std::max<int64_t>(8, round_up((op.out + 3) / 4, 8));
  const int64_t blocks = (op.out + rows - 1) / rows, images = op.batch * op.groups;
  std::atomic<int> status{0};
  parallel(images + op.groups * blocks, [&](int64_t i) {
    if (i < op.groups * blocks) {
      const int64_t g = i / blocks, from = i % blocks * rows, count = std::min(rows, op.out - from);
      for (int64_t n = 0; n < op.batch; n++) {
        const int failed = dnnl_sgemm('N', 'T', count, op.in, op.size, 1,
                                      dy + (n * op.out_channels + g * op.out + from) * op.size, op.size,
                                      x + (n * op.in_channels + g * op.in) * op.size, op.size, n ? 1 : 0,
                                      dweight + (g * op.out + from) * op.in, op.in);
        if (failed) status = failed;
      }
      return;
    }
    const int64_t n = (i - op.groups * blocks) / op.groups, g = (i - op.groups * blocks) % op.groups;
    const int failed = dnnl_sgemm('T', 'N', op.in, op.size, op.out, 1, weight + g * op.out * op.in, op.in,
                                  dy + (n * op.out_channels + g * op.out) * op.size, op.size, 0,
                                  dx + (n * op.in_channels + g * op.in) * op.size, op.size);
    if (failed) status = failed;
  });
  return status;
}

// Input x; output y: 3x3 max pooling at stride 2, padded by 1.
int max_pool_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *x = floats(data[0]);
  float *y = output(data[1]);
  const Padded layout(shapes[0][2], shapes[0][3], 1, 2);
  const int64_t size = shapes[0][2] * shapes[0][3], height = shapes[1][2], width = shapes[1][3];
  parallel(shapes[0][0] * shapes[0][1], [&](int64_t i) {
    float *padded = scratch(0, layout.size());
    std::fill(padded, padded + layout.size(), -std::numeric_limits<float>::infinity());
    layout.fill(padded, x + i * size);
    max_plane(layout, padded, y + i * height * width, height, width);
  });
  return 0;
}

// Inputs x, dy; output dx.
int max_pool_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *x = floats(data[0]), *dy = floats(data[1]);
  float *dx = output(data[2]);
  const Padded layout(shapes[0][2], shapes[0][3], 1, 2);
  const int64_t size = shapes[0][2] * shapes[0][3], height = shapes[1][2], width = shapes[1][3];
  parallel(shapes[0][0] * shapes[0][1], [&](int64_t i) {
    float *padded = scratch(0, layout.size()), *gradient = scratch(1, layout.size());
    std::fill(padded, padded + layout.size(), -std::numeric_limits<float>::infinity());
    std::fill(gradient, gradient + layout.size(), 0.0f);
    layout.fill(padded, x + i * size);
    max_plane_gradient(layout, padded, dy + i * height * width, gradient, height, width);
    layout.take(gradient, dx + i * size);
  });
  return 0;
}

// Inputs a, b, settings (interleaved); output: the concatenated channels. Interleaved: they alternate.
int merge_channels(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const Halves op(shapes[0], shapes[1], floats(data[2]));
  const float *parts[2] = {floats(data[0]), floats(data[1])};
  float *both = output(data[3]);
  parallel_planes(shapes[3], [&](int64_t i) {
    std::memcpy(both + i * op.size, parts[op.part(i)] + op.at(i), op.size * sizeof(float));
  });
  return 0;
}

// Inputs x, settings (interleaved); outputs a, b: the inverse of merge_channels.
int deal_channels(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const Halves op(shapes[2], shapes[3], floats(data[1]));
  const float *both = floats(data[0]);
  float *parts[2] = {output(data[2]), output(data[3])};
  parallel_planes(shapes[0], [&](int64_t i) {
    std::memcpy(parts[op.part(i)] + op.at(i), both + i * op.size, op.size * sizeof(float));
  });
  return 0;
}

// Inputs a, b; output y = relu(a + b).
int add_relu_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *a = floats(data[0]), *b = floats(data[1]);
  float *y = output(data[2]);
  for_elements(shapes[0], [&](int64_t at, auto count) {
    put(y + at, activate<kRelu>(get(a + at, count) + get(b + at, count)), count);
  });
  return 0;
}

// Inputs y, dy; output: the gradient of a and of b.
int add_relu_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *y = floats(data[0]), *dy = floats(data[1]);
  float *gradient = output(data[2]);
  for_elements(shapes[0], [&](int64_t at, auto count) {
    put(gradient + at, get(dy + at, count) * slope<kRelu>(get(y + at, count)), count);
  });
  return 0;
}

// Input x; output (N, C, 1, 1): the mean of each channel.
int mean_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *x = floats(data[0]);
  float *y = output(data[1]);
  const int64_t size = shapes[0][2] * shapes[0][3];
  parallel_planes(shapes[0], [&](int64_t i) {
    Vec total{};
    sweep(size, [&](int64_t j, auto count) { total += get(x + i * size + j, count); });
    y[i] = static_cast<float>(sum(total) / size);
  });
  return 0;
}

// Inputs x (for its shape), dy; output dx.
int mean_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *dy = floats(data[1]);
  float *dx = output(data[2]);
  const int64_t size = shapes[0][2] * shapes[0][3];
  parallel_planes(shapes[0], [&](int64_t i) { std::fill(dx + i * size, dx + (i + 1) * size, dy[i] / size); });
  return 0;
}

// Inputs x, factors (N, C, 1, 1); output: each channel times its factor.
int scale_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *x = floats(data[0]), *factors = floats(data[1]);
  float *y = output(data[2]);
  const int64_t size = shapes[0][2] * shapes[0][3];
  parallel_planes(shapes[0], [&](int64_t i) {
    sweep(size, [&](int64_t j, auto count) { put(y + i * size + j, get(x + i * size + j, count) * factors[i], count); });
  });
  return 0;
}

// Inputs x, dy, factors; outputs dx, dfactors.
int scale_backward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const float *x = floats(data[0]), *dy = floats(data[1]), *factors = floats(data[2]);
  float *dx = output(data[3]), *dfactors = output(data[4]);
  const int64_t size = shapes[0][2] * shapes[0][3];
  parallel_planes(shapes[0], [&](int64_t i) {
    Vec total{};
    sweep(size, [&](int64_t j, auto count) {
      const Vec gradient = get(dy + i * size + j, count);
      total += gradient * get(x + i * size + j, count);
      put(dx + i * size + j, gradient * factors[i], count);
    });
    dfactors[i] = static_cast<float>(sum(total));
  });
  return 0;
}

// Inputs x, weight, settings (stride, padding); output y.
int dense_forward(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const Dense op(shapes[0], shapes[1], floats(data[2]));
  const float *x = floats(data[0]), *weight = floats(data[1]);
  float *y = output(data[3]);
  std::atomic<int> status{0};
  parallel(op.batch, [&](int64_t n) {
    float *matrix = scratch(0, op.depth * op.tile * op.patches.out_width);
    op.for_tiles([&](int64_t from, int64_t rows, int64_t columns) {
      op.patches.gather(x + n * op.in_size(), from, rows, matrix);
      const int failed = dnnl_sgemm('N', 'N', op.out_channels, columns, op.depth, 1, weight, op.depth, matrix, columns, 0,
                                    y + n * op.out_channels * op.out_plane() + from * op.patches.out_width,
                                    op.out_plane());
      if (failed) status = failed;
    });
  });
  return status;
}

// Inputs x, dy, weight, settings; output dweight.
int dense_weight_gradient(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const Dense op(shapes[0], shapes[2], floats(data[3]));
  const float *x = floats(data[0]), *dy = floats(data[1]);
  float *dweight = output(data[4]);
  const int64_t size = op.out_channels * op.depth;
  std::vector<float> partial(op.batch * size, 0.0f);
  std::atomic<int> status{0};
  parallel(op.batch, [&](int64_t n) {
    float *matrix = scratch(0, op.depth * op.tile * op.patches.out_width);
    op.for_tiles([&](int64_t from, int64_t rows, int64_t columns) {
      op.patches.gather(x + n * op.in_size(), from, rows, matrix);
      const int failed = dnnl_sgemm('N', 'T', op.out_channels, op.depth, columns, 1,
                                    dy + n * op.out_channels * op.out_plane() + from * op.patches.out_width,
                                    op.out_plane(), matrix, columns, 1, partial.data() + n * size, op.depth);
      if (failed) status = failed;
    });
  });
  for (int64_t i = 0; i < size; i++) {
    double total = 0;
    for (int64_t n = 0; n < op.batch; n++) total += partial[n * size + i];
    dweight[i] = static_cast<float>(total);
  }
  return status;
}

// Inputs x, dy, weight, settings; output dx.
int dense_input_gradient(int, void **data, int *, int64_t **shapes, const char **, void *, void *) {
  const Dense op(shapes[0], shapes[2], floats(data[3]));
  const float *dy = floats(data[1]), *weight = floats(data[2]);
  float *dx = output(data[4]);
  std::atomic<int> status{0};
  parallel(op.batch, [&](int64_t n) {
    float *matrix = scratch(0, op.depth * op.tile * op.patches.out_width), *own = dx + n * op.in_size();
    std::fill(own, own + op.in_size(), 0.0f);
    op.for_tiles([&](int64_t from, int64_t rows, int64_t columns) {
      const int failed = dnnl_sgemm('T', 'N', op.depth, columns, op.out_channels, 1, weight, op.depth,
                                    dy + n * op.out_channels * op.out_plane() + from * op.patches.out_width,
                                    op.out_plane(), 0, matrix, columns);
      if (failed) status = failed;
      op.patches.scatter(matrix, from, rows, own);
    });
  });
  return status;
}

}  // extern "C"
