// Vectors of floats, and the activations that are computed on them.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

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

}  // namespace
