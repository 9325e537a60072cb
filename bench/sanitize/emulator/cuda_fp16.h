// Pairs of float16, as far as kernels use them.
#pragma once

#include "cuda_runtime.h"

struct __half2 {
  uint16_t x, y;
};

inline __half2 __floats2half2_rn(float x, float y) {
  return {emulator::to_half(x), emulator::to_half(y)};
}
inline float2 __half22float2(__half2 pair) {
  return {emulator::from_half(pair.x), emulator::from_half(pair.y)};
}
