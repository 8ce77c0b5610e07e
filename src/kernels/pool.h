// The threads that all kernels share, and their working memory.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace {

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

  int threads() const { return wanted_ + 1; }

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

// Working memory of the calling thread, reused between calls, aligned to a cache line. Buffers in use at the same time
// need different slots.
enum Slot { kPanelSlot, kOtherPanelSlot, kTransposedSlot, kTileSlot, kInputSlot, kOutputSlot, kGradientSlot, kRestSlot, kPartialSlot, kSlots };

float *scratch(Slot slot, int64_t size) {
  struct Buffer {
    float *data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffers[kSlots];
  Buffer &buffer = buffers[slot];
  if (buffer.size < size) {
    std::free(buffer.data);
    buffer.size = (size + 15) / 16 * 16;  // std::aligned_alloc takes multiples of the alignment
    buffer.data = static_cast<float *>(std::aligned_alloc(64, buffer.size * sizeof(float)));
    if (buffer.data == nullptr) throw std::bad_alloc();
  }
  return buffer.data;
}

}  // namespace
