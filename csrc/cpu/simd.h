// Compiles one loop for every SIMD level; the best level that the processor has is chosen when it first runs.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "../fma.h"

// For a loop body and all that it calls: what is not inlined would be compiled for the baseline.
#define LAE_INLINE inline __attribute__((always_inline))

namespace lae {

enum class Simd { kBaseline, kAvx2, kAvx512 };

inline Simd choose_simd() {
#if defined(__x86_64__)
  const char* asked = std::getenv("LAE_FAST_KERNELS");  // sse2|avx2|avx512 asks for a lower level
  const auto allows = [&](const char* name) { return !asked || std::strcmp(asked, name) == 0; };
  __builtin_cpu_init();
  if (asked && std::strcmp(asked, "sse2") == 0) return Simd::kBaseline;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Simd::kBaseline;
  if (allows("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    return Simd::kAvx512;
  return Simd::kAvx2;
#else
  return Simd::kBaseline;
#endif
}

inline Simd simd() {
  static const Simd chosen = choose_simd();
  return chosen;
}

inline const char* simd_name() {
#if defined(__x86_64__)
  return simd() == Simd::kAvx512 ? "avx512" : simd() == Simd::kAvx2 ? "avx2" : "sse2";
#elif defined(__aarch64__)
  return "neon";
#else
  return "baseline";
#endif
}

#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
using BaselineFma = Fma;
#else
using BaselineFma = EmulatedFma;
#endif

// Calls f, with the fma of its level if f asks for one.
template <typename AnyFma, typename F>
LAE_INLINE void call(const F& f) {
  if constexpr (std::is_invocable_v<F, AnyFma>)
    f(AnyFma{});
  else
    f();
}

#if defined(__x86_64__)
template <typename F>
__attribute__((target("avx2,fma"))) void run_avx2(const F& f) {
  call<Fma>(f);
}
template <typename F>
#if defined(__clang__)  // clang does not know prefer-vector-width, and would ignore the whole list
__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma")))
#else
__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,fma,prefer-vector-width=512")))
#endif
void run_avx512(const F& f) {
  call<Fma>(f);
}
#endif

// Runs f, a lambda marked LAE_SIMD, at the chosen level: `with_simd([&]() LAE_SIMD { ... })`, or `[&](auto fma)`.
#define LAE_SIMD __attribute__((always_inline))
template <typename F>
void with_simd(const F& f) {
#if defined(__x86_64__)
  if (simd() == Simd::kAvx512) return run_avx512(f);
  if (simd() == Simd::kAvx2) return run_avx2(f);
#endif
  call<BaselineFma>(f);
}

// A sum runs in kLanes interleaved float64 lanes, whatever the vector width: the width never changes a bit.

// Calls f(i, m) for each group of m = kLanes elements from i on, one for each lane; the last group is shorter, perhaps empty.
template <int kLanes, typename F>
LAE_INLINE void for_lanes(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
  f(i, static_cast<int>(n - i));
}

// The sum of all lanes, by halves. It changes no lane, so that the lanes stay in registers while they are summed up.
template <int kLanes>
LAE_INLINE double total(const double (&lanes)[kLanes]) {
  if constexpr (kLanes == 1) {
    return lanes[0];
  } else {
    double halves[kLanes / 2];
    for (int lane = 0; lane < kLanes / 2; ++lane) halves[lane] = lanes[lane] + lanes[lane + kLanes / 2];
    return total(halves);
  }
}

}  // namespace lae
