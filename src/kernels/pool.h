// The threads that all kernels share, and their working memory.
#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace {

// MindSpore starts the operators of a step some 10 to 30 microseconds apart. A thread that waits this long in a loop
// is usually there for the next operator; to wake a sleeping thread takes as long as a small operator.
constexpr std::chrono::microseconds kSpin{50};

// A number of tasks that several threads share. A job is used again and again, for other tasks.
class alignas(64) Job {
 public:
  // Takes the job for the caller, unless another caller has it.
  bool take() { return !taken_.load(std::memory_order_relaxed) && !taken_.exchange(true, std::memory_order_acquire); }
  void give_back() { taken_.store(false, std::memory_order_release); }

  // Offers task(0) to task(count - 1). The job must be taken, and its tasks before must be done.
  void offer(const std::function<void(int64_t)> &task, uint32_t count) {
    done_.store(0, std::memory_order_relaxed);
    task_.store(&task, std::memory_order_release);
    count_.store(count, std::memory_order_release);
    use_++;
    left_.store(use_ << 32 | count, std::memory_order_release);
  }

  // Runs one of the tasks that no thread has begun; returns false if there is none.
  bool work() {
    uint64_t left = left_.load(std::memory_order_acquire);
    for (;;) {
      const uint32_t tasks = static_cast<uint32_t>(left);
      if (tasks == 0) return false;
      // A thread may sleep here for long, and the job may be used again in the meantime. Then the exchange fails, since
      // `left_` also counts the uses. If it succeeds, task and count belong to the use in `left`.
      const auto *task = task_.load(std::memory_order_acquire);
      const uint32_t count = count_.load(std::memory_order_acquire);
      if (left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        (*task)(count - tasks);
        done_.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
  }

  bool done(uint32_t count) const { return done_.load(std::memory_order_acquire) == count; }

 private:
  std::atomic<bool> taken_{false};
  std::atomic<const std::function<void(int64_t)> *> task_{nullptr};
  std::atomic<uint32_t> count_{0}, done_{0};
  std::atomic<uint64_t> left_{0};  // number of the use << 32 | tasks that no thread has begun
  uint64_t use_ = 0;
};

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Pool {
 public:
  static Pool &instance() { return **place(); }

  // `count` includes the thread that calls run(). Threads above the number end after their current task.
  void set_threads(int count) {
    std::lock_guard<std::mutex> lock(mutex_);
    wanted_ = count - 1;
    wake_.notify_all();
  }

  int threads() const { return wanted_ + 1; }

  // Calls task(0) to task(count - 1), distributed over the threads, and returns when all tasks are done. It does not
  // wait for threads that have no task. Several callers share the threads; beyond kJobs, a caller uses its own thread.
  void run(int64_t count, const std::function<void(int64_t)> &task) {
    Job *job = count < 2 || count > UINT32_MAX || wanted_ < 1 ? nullptr : take_job();
    if (job == nullptr) {
      for (int64_t i = 0; i < count; i++) task(i);
      return;
    }
    if (started_ < wanted_) start_workers();
    job->offer(task, static_cast<uint32_t>(count));
    offers_++;
    // Both this check and the check of `offers_` by a thread that lies down are sequentially consistent: either this
    // thread sees the other thread asleep, or the other thread sees the offer.
    if (sleeping_ > 0) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
      }  // a thread that has seen no offer is asleep now
      if (count <= sleeping_) {
        for (int64_t i = 1; i < count; i++) wake_.notify_one();
      } else {
        wake_.notify_all();
      }
    }
    while (job->work()) {
    }
    wait([&] { return job->done(static_cast<uint32_t>(count)); });
    while (!job->done(static_cast<uint32_t>(count))) std::this_thread::yield();
    job->give_back();
  }

 private:
  static constexpr int kJobs = 8;

  // The pool is never destroyed, because its threads may outlive main. A child process after fork() has none of the
  // threads, and perhaps a locked mutex, so it gets a new pool.
  static Pool **place() {
    static Pool *pool = [] {
      pthread_atfork(nullptr, nullptr, [] {
        Pool *&own = *place();
        const int wanted = own->wanted_;
        own = new Pool;
        own->wanted_ = wanted;
      });
      return new Pool;
    }();
    return &pool;
  }

  Job *take_job() {
    for (Job &job : jobs_)
      if (job.take()) return &job;
    return nullptr;
  }

  void start_workers() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (; started_ < wanted_; started_++) std::thread([this] { serve(); }).detach();
  }

  void serve() {
    for (;;) {
      const uint64_t seen = offers_;
      for (Job &job : jobs_)
        while (started_ <= wanted_ && job.work()) {
        }
      if (wait([&] { return offers_ != seen || started_ > wanted_; }) && started_ <= wanted_) continue;
      std::unique_lock<std::mutex> lock(mutex_);
      sleeping_++;
      wake_.wait(lock, [&] { return offers_ != seen || started_ > wanted_; });
      sleeping_--;
      if (started_ > wanted_) {
        started_--;
        return;
      }
    }
  }

  // Waits in a loop for at most kSpin; returns whether the condition is met.
  template <class Condition>
  static bool wait(Condition met) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 16; i++) {
        if (met()) return true;
        pause();
      }
    } while (std::chrono::steady_clock::now() < end);
    return false;
  }

  Job jobs_[kJobs];
  std::atomic<uint64_t> offers_{0};
  std::atomic<int> wanted_{0}, started_{0}, sleeping_{0};  // threads besides the callers
  std::mutex mutex_;
  std::condition_variable wake_;
};

void parallel(int64_t count, const std::function<void(int64_t)> &task) { Pool::instance().run(count, task); }

// Working memory of the calling thread, reused between calls, aligned to a cache line. Buffers in use at the same time
// need different slots.
enum Slot {
  kPanelSlot,
  kOtherPanelSlot,
  kTransposedSlot,
  kTileSlot,
  kInputSlot,
  kOutputSlot,
  kGradientSlot,
  kRestSlot,
  kPartialSlot,
  kFirstMapSlot,
  kSecondMapSlot,
  kSlots
};

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
