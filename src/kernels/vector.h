// Vectors of floats, and the activations that are computed on them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#ifdef __AVX__
#include <immintrin.h>
#endif

#include "settings.h"

namespace {

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
typedef float Vec __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Vec load(const float *p) { return *reinterpret_cast<const Vec *>(p); }
inline void store(float *p, Vec v) { *reinterpret_cast<Vec *>(p) = v; }
inline Vec all(float value) { return value - Vec{}; }  // Vec{} + value would add: -0 + 0 is 0

#if defined(__AVX__) && !defined(__AVX512F__)
// The mask of the first `count` lanes.
inline __m256i first_lanes(int64_t count) {
  static const int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(kMask + 8 - count));
}
#endif

// Loads `count` elements, fewer than kLanes; the other lanes are 0. A copy of `count` bytes would be a function call.
inline Vec load_first(const float *p, int64_t count) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif defined(__AVX__)
  return (Vec)_mm256_maskload_ps(p, first_lanes(count));
#else
  Vec v{};
  for (int64_t i = 0; i < count; i++) v[i] = p[i];
  return v;
#endif
}

inline void store_first(float *p, Vec v, int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#elif defined(__AVX__)
  _mm256_maskstore_ps(p, first_lanes(count), (__m256)v);
#else
  for (int64_t i = 0; i < count; i++) p[i] = v[i];
#endif
}

// Sums in float64, lane by lane. Many short sums of floats are added up here, and their lanes only at the end.
struct Wide {
  typedef double Lanes __attribute__((vector_size(kLanes * sizeof(double))));
  Lanes lanes{};

  void add(Vec v) { lanes += __builtin_convertvector(v, Lanes); }

  double sum() const {
    double total = 0;
    for (int64_t i = 0; i < kLanes; i++) total += lanes[i];
    return total;
  }
};

inline double sum(Vec v) {
  Wide wide;
  wide.add(v);
  return wide.sum();
}

// The lanes of `v` below `count`; the other lanes are 0.
inline Vec keep_first(Vec v, int64_t count) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_mov_ps(static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#elif defined(__AVX__)
  return (Vec)_mm256_and_ps((__m256)v, (__m256)first_lanes(count));
#else
  for (int64_t i = count; i < kLanes; i++) v[i] = 0;
  return v;
#endif
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
inline Vec keep(Vec v, std::integral_constant<int64_t, kLanes>) { return v; }
inline Vec keep(Vec v, int64_t count) { return keep_first(v, count); }

// Large results leave the caches before they are read again. Stores past the caches need not read the lines that they
// replace, which takes half of the time of ordinary stores.
constexpr int64_t kPastCache = int64_t{2} << 20;  // elements of a result from which on it is written past the caches

// Whether rows of `row` elements, of a result of `total` elements at p, can be written past the caches.
inline bool goes_past_cache(const float *p, int64_t row, int64_t total) {
#ifdef __AVX__
  return total >= kPastCache && row % kLanes == 0 && reinterpret_cast<uintptr_t>(p) % sizeof(Vec) == 0;
#else
  return false;
#endif
}

// As put; the full vectors of an aligned row go past the caches if `past` is true.
template <class Past, class Count>
inline void put(Past past, float *p, Vec v, Count count) {
#ifdef __AVX__
  if constexpr (past && !std::is_same_v<Count, int64_t>) {
#ifdef __AVX512F__
    return _mm512_stream_ps(p, (__m512)v);
#else
    return _mm256_stream_ps(p, (__m256)v);
#endif
  }
#endif
  put(p, v, count);
}

// Calls body(past) with the constant, and makes stores past the caches visible to the other threads.
template <class Body>
inline void with_past_cache(bool past, Body body) {
  if (!past) return body(std::false_type{});
  body(std::true_type{});
#ifdef __AVX__
  _mm_sfence();
#endif
}

inline void copy(const float *from, float *to, int64_t size) {
  sweep(size, [&](int64_t i, auto count) { put(to + i, get(from + i, count), count); });
}

// A step of the transposition of a square of vectors: in groups of D lanes, exchanges the upper group of `a` with the
// lower group of `b`.
template <int D, int... L>
inline void exchange(Vec &a, Vec &b, std::integer_sequence<int, L...>) {
  constexpr int n = kLanes;
#ifdef __clang__
  const Vec low = __builtin_shufflevector(a, b, (L & D ? n + L - D : L)...);
  const Vec high = __builtin_shufflevector(a, b, (L & D ? n + L : L + D)...);
#else
  typedef int32_t Lanes __attribute__((vector_size(kLanes * sizeof(int32_t))));
  const Vec low = __builtin_shuffle(a, b, Lanes{(L & D ? n + L - D : L)...});
  const Vec high = __builtin_shuffle(a, b, Lanes{(L & D ? n + L : L + D)...});
#endif
  a = low;
  b = high;
}

template <int... L>
inline void deal_lanes(Vec &a, Vec &b, std::integer_sequence<int, L...>) {
#ifdef __clang__
  const Vec even = __builtin_shufflevector(a, b, (2 * L)...), odd = __builtin_shufflevector(a, b, (2 * L + 1)...);
#else
  typedef int32_t Lanes __attribute__((vector_size(kLanes * sizeof(int32_t))));
  const Vec even = __builtin_shuffle(a, b, Lanes{(2 * L)...}), odd = __builtin_shuffle(a, b, Lanes{(2 * L + 1)...});
#endif
  a = even;
  b = odd;
}

template <int... L>
inline void merge_lanes(Vec &even, Vec &odd, std::integer_sequence<int, L...>) {
  constexpr int n = kLanes;
#ifdef __clang__
  const Vec a = __builtin_shufflevector(even, odd, (L / 2 + L % 2 * n)...);
  const Vec b = __builtin_shufflevector(even, odd, (n / 2 + L / 2 + L % 2 * n)...);
#else
  typedef int32_t Lanes __attribute__((vector_size(kLanes * sizeof(int32_t))));
  const Vec a = __builtin_shuffle(even, odd, Lanes{(L / 2 + L % 2 * n)...});
  const Vec b = __builtin_shuffle(even, odd, Lanes{(n / 2 + L / 2 + L % 2 * n)...});
#endif
  even = a;
  odd = b;
}

// Puts the even elements of the row (a, b) into a and the odd elements into b; `merge` is the inverse.
inline void deal(Vec &a, Vec &b) { deal_lanes(a, b, std::make_integer_sequence<int, kLanes>()); }
inline void merge(Vec &even, Vec &odd) { merge_lanes(even, odd, std::make_integer_sequence<int, kLanes>()); }

// Calls body(position, count of the first vector, count of the second vector) for each pair of vectors of `size`
// elements. The second count may be 0.
template <class Body>
inline void sweep_pairs(int64_t size, Body body) {
  constexpr std::integral_constant<int64_t, kLanes> full{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) body(i, full, full);
  if (i + kLanes <= size) return body(i, full, size - i - kLanes);
  if (i < size) body(i, size - i, int64_t{0});
}

// Transposes a square of kLanes vectors.
inline void transpose(Vec (&v)[kLanes]) {
  const auto stage = [&](auto distance) {
    constexpr int d = distance.value;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++)
      if ((i & d) == 0) exchange<d>(v[i], v[i + d], std::make_integer_sequence<int, kLanes>());
  };
  if constexpr (kLanes == 16) stage(std::integral_constant<int, 8>{});
  stage(std::integral_constant<int, 4>{});
  stage(std::integral_constant<int, 2>{});
  stage(std::integral_constant<int, 1>{});
}

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
    case kNone:
      return body(std::integral_constant<int, kNone>{});
    case kRelu:
      return body(std::integral_constant<int, kRelu>{});
    case kRelu6:
      return body(std::integral_constant<int, kRelu6>{});
    default:
      return body(std::integral_constant<int, kHardSwish>{});
  }
}

}  // namespace
