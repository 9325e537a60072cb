// Every float32 |logit| through what fma.h emulates, once with the instruction and once without: the same bits? And every
// exp(-|logit|) through the GPU's division, from every reciprocal it may begin with. 15 s.
// g++ -std=c++20 -O3 -march=x86-64-v3 -ffp-contract=off -fno-math-errno -fno-trapping-math tests/every_logit.cpp && ./a.out

#include <cstdio>

#include "../csrc/energy_math.h"

using namespace lae;

template <typename F>
float log1p_exp(F fma, float size) {  // log(1 + exp(-size)); the sigmoid needs exp(-size) alone
  const float e = exp_negative(fma, -size);
  return log1p_unit(fma, e, e / (1.0f + e));
}

int main() {
  constexpr uint32_t kEnd = 0x42B00000, kBlock = 1 << 16;  // 88: from 87 on all are alike
  uint32_t n_wrong = 0;
  for (uint32_t begin = 0; begin < kEnd; begin += kBlock)
    for (uint32_t i = 0; i < kBlock; ++i) {
      const float size = bits_as<float>(begin + i);
      n_wrong += bits_as<uint32_t>(exp_negative(Fma{}, -size)) != bits_as<uint32_t>(exp_negative(EmulatedFma{}, -size));
      n_wrong += bits_as<uint32_t>(log1p_exp(Fma{}, size)) != bits_as<uint32_t>(log1p_exp(EmulatedFma{}, size));
    }
  std::printf("%u of %u logits wrong\n", n_wrong, kEnd);

  constexpr uint32_t kSmallest = 0x33000000, kOne = 0x3F800000;  // 2^-25
  uint32_t n_misdivided = 0;
  for (uint32_t bits = kSmallest; bits <= kOne; ++bits) {
    const float e = bits_as<float>(bits), d = 1.0f + e;
    for (uint32_t k = 0; k < 9; ++k)
      n_misdivided += divide_from(bits_as<float>(bits_as<uint32_t>(1.0f / d) + k - 4), e, d) != e / d;
  }
  std::printf("%u of %u quotients wrong\n", n_misdivided, 9 * (kOne - kSmallest + 1));
  return n_wrong + n_misdivided != 0;
}
