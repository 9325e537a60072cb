// Pairs of bfloat16, as far as kernels use them.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat162 {
  uint16_t x, y;
};

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {emulator::to_bfloat(x), emulator::to_bfloat(y)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) {
  return {emulator::from_bfloat(pair.x), emulator::from_bfloat(pair.y)};
}
