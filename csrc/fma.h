// a * b + c in float32, rounded once. The compilers fuse nothing by themselves, which would depend on the device: it is
// asked for here.
#pragma once

#include "philox.h"

namespace lae {

// By the instruction that every GPU has, and aarch64, and x86-64 from AVX2 on.
struct Fma {
  LAE_HD float operator()(float a, float b, float c) const { return fmaf(a, b, c); }
};

// Where it is missing. The product is exact in float64, but the sum is rounded twice, to float64 and to float32: for about
// one sum in 2^29 that is not the same. tests/every_logit.cpp tries all that occur and finds none such; whoever changes an
// argument of an fma runs it again. (For float64 nothing as cheap exists: it does without.)
struct EmulatedFma {
  LAE_HD float operator()(float a, float b, float c) const {
    return static_cast<float>(static_cast<double>(a) * b + c);
  }
};

}  // namespace lae
