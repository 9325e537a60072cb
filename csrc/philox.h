// Counter-based noise: (seed, step, chain, element) -> integer, uniform, normal.
//
// Philox4x32-10 (Salmon et al., 2011) with the 64-bit seed as key. One call gives the four 32-bit words of elements 4b
// to 4b + 3 of one chain at one step. Floating point uses only + - * / and sqrt, and the compilers are told not to
// contract them, so every device computes the same bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <cmath>

#if defined(__CUDACC__)
#define LAE_HD __host__ __device__ __forceinline__
#else
#define LAE_HD inline __attribute__((always_inline))
#endif

namespace lae {

// What random words are for: the last word of the counter.
enum Purpose : uint32_t {
  kNormals = 0,     // the words of the normals (float64: their high halves)
  kUniform = 1,     // the Metropolis-Hastings uniform of a chain, from words 0 and 1 of element 0
  kNormalsLow = 2,  // float64 only: the low halves
};

struct Words {
  uint32_t w[4];
};

LAE_HD uint32_t mul_hi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32);
}

// block: element / 4. Steps past 2^32 move into the upper bits of the purpose word: no wrap-around.
LAE_HD Words philox(uint64_t seed, uint32_t block, uint32_t chain, uint64_t step, uint32_t purpose) {
  uint32_t c0 = block, c1 = chain, c2 = static_cast<uint32_t>(step);
  uint32_t c3 = purpose | (static_cast<uint32_t>(step >> 32) << 8);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint32_t h0 = mul_hi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
    const uint32_t h1 = mul_hi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
    c0 = h1 ^ c1 ^ k0;
    c1 = l1;
    c2 = h0 ^ c3 ^ k1;
    c3 = l0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Uniforms. Those of `open_uniform` lie in (0, 1], so their logarithm is finite; the others lie in [0, 1).
LAE_HD float open_uniform(uint32_t bits) {
  return static_cast<float>((bits >> 8) + 1u) * 0x1p-24f;
}
LAE_HD float uniform(uint32_t bits) {
  return static_cast<float>(bits >> 8) * 0x1p-24f;
}
// 53 bits. The upper 24 are those of the float32 uniform, so float64 chains follow the float32 noise.
LAE_HD double fraction53(uint32_t high, uint32_t low) {
  return static_cast<double>(static_cast<int32_t>(high >> 5)) * 0x1p26 +
         static_cast<double>(static_cast<int32_t>(low >> 6));
}
LAE_HD double open_uniform(uint32_t high, uint32_t low) {
  return (fraction53(high, low) + 1.0) * 0x1p-53;
}
LAE_HD double uniform(uint32_t high, uint32_t low) {
  return fraction53(high, low) * 0x1p-53;
}

// log(u) for u > 0 that is not subnormal: u = 2^e m with m in [sqrt(1/2), sqrt(2)), log m = 2 atanh(s),
// s = (m - 1) / (m + 1), |s| < 0.172. The terms that the series leaves out are below the rounding of the type.
LAE_HD float log_uniform(float u) {
  int32_t bits;
  memcpy(&bits, &u, sizeof bits);
  const int32_t exponent = (bits - 0x3F3504F3) >> 23;
  bits -= exponent * (1 << 23);
  float m;
  memcpy(&m, &bits, sizeof m);
  const float s = (m - 1.0f) / (m + 1.0f), z = s * s;
  float p = z * (1.0f / 9) + 1.0f / 7;
  p = z * p + 1.0f / 5;
  p = z * p + 1.0f / 3;
  p = z * p;
  return static_cast<float>(exponent) * 0.693147182464599609375f + (2.0f * s + 2.0f * s * p);
}
LAE_HD double log_uniform(double u) {
  int64_t bits;
  memcpy(&bits, &u, sizeof bits);
  const int64_t exponent = static_cast<int32_t>(static_cast<int32_t>(bits >> 32) - 0x3FE6A09E) >> 20;
  bits -= exponent * (int64_t{1} << 52);
  double m;
  memcpy(&m, &bits, sizeof m);
  const double s = (m - 1.0) / (m + 1.0), z = s * s;
  double p = z * (1.0 / 21) + 1.0 / 19;
  p = z * p + 1.0 / 17;
  p = z * p + 1.0 / 15;
  p = z * p + 1.0 / 13;
  p = z * p + 1.0 / 11;
  p = z * p + 1.0 / 9;
  p = z * p + 1.0 / 7;
  p = z * p + 1.0 / 5;
  p = z * p + 1.0 / 3;
  p = z * p;
  return static_cast<double>(static_cast<int32_t>(exponent)) * 0.69314718055994530942 +
         (2.0 * s + 2.0 * s * p);
}

// cos and sin of 2 pi u, u in [0, 1). Quarter turns are subtracted exactly; for the rest, |angle| <= pi/4, a Taylor
// series follows, and the terms that it leaves out are below the rounding of the type.
LAE_HD void cos_sin_turn(float u, float& cosine, float& sine) {
  const int32_t quarter = static_cast<int32_t>(u * 4.0f + 0.5f);
  const float a = (u - static_cast<float>(quarter) * 0.25f) * 6.283185307179586f, z = a * a;
  float c = z * (1.0f / 40320) - 1.0f / 720;
  c = z * c + 1.0f / 24;
  c = z * c - 0.5f;
  c = z * c + 1.0f;
  float s = z * (1.0f / 362880) - 1.0f / 5040;
  s = z * s + 1.0f / 120;
  s = z * s - 1.0f / 6;
  s = a + a * (z * s);
  const float x = (quarter & 1) ? s : c, y = (quarter & 1) ? c : s;
  cosine = ((quarter + 1) & 2) ? -x : x;
  sine = (quarter & 2) ? -y : y;
}
LAE_HD void cos_sin_turn(double u, double& cosine, double& sine) {
  const int32_t quarter = static_cast<int32_t>(u * 4.0 + 0.5);
  const double a = (u - static_cast<double>(quarter) * 0.25) * 6.283185307179586476925, z = a * a;
  double c = z * (1.0 / 20922789888000.0) - 1.0 / 87178291200.0;
  c = z * c + 1.0 / 479001600.0;
  c = z * c - 1.0 / 3628800.0;
  c = z * c + 1.0 / 40320;
  c = z * c - 1.0 / 720;
  c = z * c + 1.0 / 24;
  c = z * c - 0.5;
  c = z * c + 1.0;
  double s = z * (1.0 / 355687428096000.0) - 1.0 / 1307674368000.0;
  s = z * s + 1.0 / 6227020800.0;
  s = z * s - 1.0 / 39916800.0;
  s = z * s + 1.0 / 362880;
  s = z * s - 1.0 / 5040;
  s = z * s + 1.0 / 120;
  s = z * s - 1.0 / 6;
  s = a + a * (z * s);
  const double x = (quarter & 1) ? s : c, y = (quarter & 1) ? c : s;
  cosine = ((quarter + 1) & 2) ? -x : x;
  sine = (quarter & 2) ? -y : y;
}

// Box-Muller: two uniforms (the first in (0, 1]) -> two independent standard normals.
template <typename T>
LAE_HD void box_muller(T u1, T u2, T& first, T& second) {
  const T radius = std::sqrt(T(-2) * log_uniform(u1));
  T c, s;
  cos_sin_turn(u2, c, s);
  first = radius * c;
  second = radius * s;
}

// The uniforms u1, u2, u1', u2' of elements 4 block to 4 block + 3.
LAE_HD void uniforms4(uint64_t seed, uint64_t step, uint32_t chain, uint32_t block, float out[4]) {
  const Words x = philox(seed, block, chain, step, kNormals);
  out[0] = open_uniform(x.w[0]);
  out[1] = uniform(x.w[1]);
  out[2] = open_uniform(x.w[2]);
  out[3] = uniform(x.w[3]);
}
LAE_HD void uniforms4(uint64_t seed, uint64_t step, uint32_t chain, uint32_t block, double out[4]) {
  const Words high = philox(seed, block, chain, step, kNormals);
  const Words low = philox(seed, block, chain, step, kNormalsLow);
  out[0] = open_uniform(high.w[0], low.w[0]);
  out[1] = uniform(high.w[1], low.w[1]);
  out[2] = open_uniform(high.w[2], low.w[2]);
  out[3] = uniform(high.w[3], low.w[3]);
}

// The standard normals of elements 4 block to 4 block + 3.
template <typename T>
LAE_HD void normals4(uint64_t seed, uint64_t step, uint32_t chain, uint32_t block, T out[4]) {
  T u[4];
  uniforms4(seed, step, chain, block, u);
  box_muller(u[0], u[1], out[0], out[1]);
  box_muller(u[2], u[3], out[2], out[3]);
}

// The Metropolis-Hastings uniform of a chain, in (0, 1].
LAE_HD double accept_uniform(uint64_t seed, uint64_t step, uint32_t chain) {
  const Words x = philox(seed, 0, chain, step, kUniform);
  return open_uniform(x.w[0], x.w[1]);
}

}  // namespace lae
