// Calls every kernel on odd shapes, from two threads at once, while a third thread changes the number of threads of the
// pool. The heap buffers have exactly the size of their tensors. Compiled with the address and undefined-behaviour
// sanitizers, the program ends with an error at the first access outside a buffer; with the thread sanitizer, at the
// first data race. A child process after fork() must be able to call kernels too.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

typedef int Kernel(int, void **, int *, int64_t **, const char **, void *, void *);
extern "C" {
void set_threads(int);
Kernel norm_forward, norm_backward, depthwise_forward, depthwise_backward, pointwise_forward, pointwise_backward,
    dense_forward, dense_weight_gradient, dense_input_gradient, max_pool_forward, max_pool_backward, merge_channels,
    deal_channels, mean_forward, mean_backward, squeeze_forward, squeeze_backward, add_relu_forward,
    add_relu_backward, preprocess, pointwise_norm, dense_norm, shuffle_unit_forward, shuffle_unit_backward,
    shuffle_unit_inference, inverted_residual;
}

typedef std::vector<int64_t> Shape;

struct Tensor {
  Shape shape;
  std::unique_ptr<float[]> data;
  const char *type = "float32";
};

Tensor values(const Shape &shape) {
  const int64_t size = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
  Tensor tensor{shape, std::unique_ptr<float[]>(new float[size])};
  for (int64_t i = 0; i < size; i++) tensor.data[i] = static_cast<float>(i * 7919 % 101) / 50 - 0.5f;
  return tensor;
}

// A tensor of bytes, rounded up to whole floats.
Tensor bytes(const Shape &shape) {
  const int64_t size = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
  return {shape, std::unique_ptr<float[]>(new float[(size + 3) / 4]()), "uint8"};
}

Tensor settings(const std::vector<float> &numbers) {
  Tensor tensor = values({static_cast<int64_t>(numbers.size())});
  std::copy(numbers.begin(), numbers.end(), tensor.data.get());
  return tensor;
}

void call(Kernel *kernel, std::vector<Tensor> tensors) {
  std::vector<void *> data;
  std::vector<int64_t *> shapes;
  std::vector<int> ranks;
  std::vector<const char *> types;
  for (Tensor &tensor : tensors) {
    data.push_back(tensor.data.get());
    types.push_back(tensor.type);
    shapes.push_back(tensor.shape.data());
    ranks.push_back(static_cast<int>(tensor.shape.size()));
  }
  const int count = static_cast<int>(data.size());
  if (kernel(count, data.data(), ranks.data(), shapes.data(), types.data(), nullptr, nullptr)) {
    std::puts("a kernel failed");
    std::exit(1);
  }
}

// Tensors cannot be copied, so a braced list cannot initialise the vector.
template <class... T>
void run(Kernel *kernel, T... list) {
  std::vector<Tensor> tensors;
  (tensors.push_back(std::move(list)), ...);
  call(kernel, std::move(tensors));
}

void call_all() {
  const Shape shapes[] = {{4, 8, 14, 14}, {2, 6, 15, 13}, {1, 3, 1, 1}, {3, 1, 7, 7}, {2, 16, 8, 33}, {2, 4, 2, 3}};
  for (const Shape &s : shapes) {
    const int64_t n = s[0], c = s[1], h = s[2], w = s[3];
    const Shape pooled{n, c, (h - 1) / 2 + 1, (w - 1) / 2 + 1}, channels{c}, point{n, c, 1, 1};
    const auto v = [](const Shape &shape) { return values(shape); };
    for (float act : {0.0f, 1.0f, 2.0f, 3.0f})
      for (float training : {0.0f, 1.0f}) {
        const auto own = [&] { return settings({1e-5f, 0.9f, act, 1, training}); };
        run(norm_forward, v(s), v(channels), v(channels), v(channels), v(channels), own(), v(s), v(channels), v(channels));
        run(norm_backward, v(s), v(s), v(channels), v(channels), v(channels), v(channels), own(), v(s), v(channels), v(channels));
      }
    for (int64_t kernel : {3, 5})
      for (int64_t stride : {1, 2})
        for (bool first : {false, true})
          for (bool second : {false, true})
            for (bool keep : {false, true}) {
              if (keep && (stride == 2 || !first)) continue;
              const int64_t oh = (h - 1) / stride + 1, ow = (w - 1) / stride + 1;
              const Shape out{n, keep ? 2 * c : c, oh, ow}, weight{c, 1, kernel, kernel};
              const Shape a{first ? c : 1}, b{second ? c : 1};
              const float runs = c % 2 == 0 && c > 2 && !keep ? 2 : 1;
              const auto own = [&] {
                return settings({float(stride), float(keep), runs, 1e-5f, 0.9f, 1, float(first), float(first), 1e-5f,
                                 0.9f, 2, float(second), float(second)});
              };
              run(depthwise_forward, v(s), v(a), v(a), v(a), v(a), v(weight), v(b), v(b), v(b), v(b), own(), v(out), v(a), v(a), v(b), v(b));
              run(depthwise_backward, v(s), v(out), v(a), v(a), v(a), v(a), v(weight), v(b), v(b), v(b), v(b), own(), v(s), v(a), v(a), v(weight), v(b), v(b));
            }
    for (int64_t groups : {1, 2}) {
      if (c % groups) continue;
      const Shape out{n, 10 * groups, h, w}, weight{10 * groups, c / groups, 1, 1};
      run(pointwise_forward, v(s), v(weight), v(out));
      const Shape outs{out[1]};
      run(pointwise_norm, v(s), v(weight), v(outs), v(outs), v(outs), settings(std::vector<float>(outs[0], 1)),
          settings({1e-5f, 0.9f, 2, 1, 0}), v(out));
      run(pointwise_backward, v(s), v(out), v(weight), v(s), v(weight));
    }
    for (int64_t kernel : {3, 5})
      for (int64_t stride : {1, 2}) {
        const Shape out{n, 5, (h - 1) / stride + 1, (w - 1) / stride + 1}, weight{5, c, kernel, kernel};
        const auto own = [&] { return settings({float(stride), float(kernel / 2)}); };
        run(dense_forward, v(s), v(weight), own(), v(out));
        run(dense_norm, v(s), v(weight), v({5}), v({5}), v({5}), settings({1, 1, 1, 1, 1}),
            settings({float(stride), float(kernel / 2), 1e-5f, 0.9f, 3, 1, 0}), v(out));
        run(dense_weight_gradient, v(s), v(out), v(weight), own(), v(weight));
        run(dense_input_gradient, v(s), v(out), v(weight), own(), v(s));
      }
    run(preprocess, bytes({n, h, w, c}), v(channels), v(channels), v(s));
    run(max_pool_forward, v(s), v(pooled));
    run(max_pool_backward, v(s), v(pooled), v(s));
    for (float interleaved : {0.0f, 1.0f}) {
      const Shape both{n, 2 * c, h, w};
      run(merge_channels, v(s), v(s), settings({interleaved}), v(both));
      run(deal_channels, v(both), settings({interleaved}), v(s), v(s));
    }
    run(mean_forward, v(s), v(point));
    run(mean_backward, v(s), v(point), v(s));
    const Shape reduce{5, c, 1, 1}, expand{c, 5, 1, 1}, means{n, c}, hidden{n, 5};
    run(squeeze_forward, v(s), v(reduce), v({5}), v(expand), v(channels), v(s), v(means), v(hidden), v(means));
    run(squeeze_backward, v(s), v(s), v(reduce), v(expand), v(means), v(hidden), v(means), v(s), v(reduce), v({5}),
        v(expand), v(channels));
    for (float interleaved : {0.0f, 1.0f}) {
      const Shape both{n, 2 * c, h, w}, product{c, c, 1, 1}, taps{c, 1, 3, 3};
      const auto own = [&](float training) {
        return settings({interleaved, 1e-5f, 0.9f, 1, 1, training, 1e-5f, 0.9f, 0, 1, training, 1e-5f, 0.9f, 1, 1, training});
      };
      const auto b = [&] { return values(channels); };
      run(shuffle_unit_forward, v(both), v(product), b(), b(), b(), b(), v(taps), b(), b(), b(), b(), v(product), b(),
          b(), b(), b(), own(1), v(both), v(s), v(s), v(s), b(), b(), b(), b(), b(), b());
      run(shuffle_unit_backward, v(both), v(both), v(product), b(), b(), b(), b(), v(taps), b(), b(), b(), b(),
          v(product), b(), b(), b(), b(), v(s), v(s), v(s), own(1), v(both), v(product), b(), b(), v(taps), b(), b(),
          v(product), b(), b());
      run(shuffle_unit_inference, v(both), v(product), b(), b(), b(), b(), v(taps), b(), b(), b(), b(), v(product),
          b(), b(), b(), b(), own(0), v(both));
    }
    for (float stride : {1.0f, 2.0f})
      for (bool squeezes : {false, true}) {
        const Shape wide{2 * c}, one{1}, small{squeezes ? 5 : 1}, point{1, 1, 1, 1};
        const Shape out{n, c, (h - 1) / int64_t(stride) + 1, (w - 1) / int64_t(stride) + 1};
        const auto b = [&](const Shape &shape) { return values(shape); };
        run(inverted_residual, v(s), v({2 * c, c, 1, 1}), b(wide), b(wide), b(wide), b(wide), v({2 * c, 1, 5, 5}), b(wide),
            b(wide), b(wide), b(wide), v(squeezes ? Shape{5, 2 * c, 1, 1} : point), b(small),
            v(squeezes ? Shape{2 * c, 5, 1, 1} : point), b(squeezes ? wide : one), v({c, 2 * c, 1, 1}), b(channels),
            b(channels), b(channels), b(channels),
            settings({stride, float(stride == 1), float(squeezes), 1e-5f, 0.9f, 3, 1, 0, 1e-5f, 0.9f, 3, 1, 0, 1e-5f, 0.9f, 0, 1, 0}),
            v(out));
      }
    run(add_relu_forward, v(s), v(s), v(s));
    run(add_relu_backward, v(s), v(s), v(s));
  }
}

int main() {
  set_threads(3);
  std::atomic<bool> done{false};
  std::thread changing([&] {
    for (int count = 1; !done; count = count % 4 + 1) {
      set_threads(count);
      std::this_thread::yield();
    }
  });
  std::thread other(call_all);
  call_all();
  other.join();
  done = true;
  changing.join();
  set_threads(2);
  const Shape shape{2, 16, 8, 33};
  run(add_relu_forward, values(shape), values(shape), values(shape));
  if (const pid_t child = fork()) {
    int status = 1;
    waitpid(child, &status, 0);
    if (status != 0) return 1;
    std::puts("clean");
    return 0;
  }
  run(add_relu_forward, values(shape), values(shape), values(shape));
  _exit(0);
}
