// a * b + c in float32, rounded once: one instruction on every GPU, on aarch64 and on x86-64 from AVX2 on, and the same bits
// without it. Not for float64, which would take some 50 operations where the instruction is missing.
#pragma once

#include "philox.h"

namespace lae {

// The same bits as another type; std::bit_cast is not for the device.
template <typename To, typename From>
LAE_HD To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

struct Fma {
  LAE_HD float operator()(float a, float b, float c) const { return std::fma(a, b, c); }
};

// Without the instruction: a product of two float32 is exact in float64, and the sum is rounded there and once more to float32. Twice
// is not once only where the sum in float64 lies in the middle of two float32, its last 29 bits a 1 and zeros: the top
// bit of `doubts` is then set, and ExactFma has to compute the result. (It is also wrong for some subnormal results;
// whoever uses it has none.)
struct QuickFma {
  uint32_t& doubts;
  LAE_HD float operator()(float a, float b, float c) const {
    const double sum = static_cast<double>(a) * b + c;
    const uint32_t low_bits = static_cast<uint32_t>(bits_as<uint64_t>(sum));
    doubts |= ((low_bits & 0x1FFFFFFFu) ^ 0x10000000u) - 1u;
    return static_cast<float>(sum);
  }
};

// For all numbers: the sum is rounded to odd in float64 (Boldo and Melquiond, 2008). Of the two float64 beside an exact sum it takes
// the one whose last bit is 1, which is never in the middle of two float32.
struct ExactFma {
  LAE_HD float operator()(float a, float b, float c) const {
    const double product = static_cast<double>(a) * b, sum = product + c;
    const double part = sum - product, error = (product - (sum - part)) + (c - part);  // exact, by Knuth's two-sum
    int64_t bits = bits_as<int64_t>(sum);
    if (error < 0.0 || error > 0.0) bits = (bits - ((error < 0.0) != (sum < 0.0))) | 1;  // towards zero, then odd
    return static_cast<float>(bits_as<double>(bits));
  }
};

}  // namespace lae
