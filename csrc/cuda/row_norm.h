// Layer norm and ReLU of a number, where the row's statistics are known; and numbers by twos and fours, as
// loads of 8 and 16 bytes bring them.
#pragma once

#include <cuda_runtime.h>

#include <concepts>
#include <cstdint>

namespace lae {

__device__ inline float2 two(const float* p) {
  return *reinterpret_cast<const float2*>(p);
}
__device__ inline float4 four(const float* p) {
  return *reinterpret_cast<const float4*>(p);
}
__device__ inline float2 two_if(bool is_inside, const float* p, int64_t i) {
  return is_inside ? two(p + i) : float2{0, 0};
}

// f of each of two or four numbers.
template <typename F, std::same_as<float2>... Pairs>
__device__ float2 each(F f, const Pairs&... v) {
  return {f(v.x...), f(v.y...)};
}
template <typename F, std::same_as<float4>... Fours>
__device__ float4 each(F f, const Fours&... v) {
  return {f(v.x...), f(v.y...), f(v.z...), f(v.w...)};
}
__device__ inline float2 operator+(const float2& a, const float2& b) {
  return {a.x + b.x, a.y + b.y};
}
__device__ inline float4 operator+(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

// A row's mean and 1 / standard deviation.
struct Norm {
  float mean = 0, rstd = 0;

  __device__ float normalized(float y) const { return (y - mean) * rstd; }
};

// The value before ReLU. Forward and backward pass share these roundings: what one of them cut off, so does the other.
__device__ inline float affine(float normalized, float weight, float bias) {
  return fmaf(normalized, weight, bias);
}
__device__ inline float relu(float v) {
  return v < 0 ? 0 : v;  // a NaN stays a NaN
}

// A gradient's path back through a norm whose input is y, and whose gradient, times the norm's weight, is g.
struct NormBackward {
  Norm norm;
  float mean = 0, slope = 0;  // the row's means of g, and of g times the normalized number

  __device__ float operator()(float g, float y) const {
    return norm.rstd * (g - mean - norm.normalized(y) * slope);
  }
};

}  // namespace lae
