// Numbers of 16 bits, and the products of a warp's tensor cores.

#include "internal.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace emulator {
namespace {

constexpr int kLanes = 32, kInner = 16;  // c [16, 8] += a [16, 16] b [8, 16]^T

struct Lane {  // what it gives
  uint32_t a[4], b[2];
};

int exponent_of(double x) {
  return static_cast<int>(std::bit_cast<uint64_t>(x) >> 52 & 0x7FF) - 1023;
}

// c and exact products, added as tensor cores do: every term is cut off below the last bit that a float of the largest
// term's size has, and so is the sum (Fasi, Higham, Mikaitis, Pranesh 2021). Newer cards keep a bit or two more.
float add_truncated(const double (&terms)[kInner + 1]) {
  double plain = 0.0, largest = 0.0;
  for (double term : terms) plain += term, largest = std::max(largest, std::abs(term));
  if (!std::isfinite(plain) || largest == 0.0) return static_cast<float>(plain);
  const double unit = std::ldexp(1.0, exponent_of(largest) - 23);
  double sum = 0.0;
  for (double term : terms) sum += std::trunc(term / unit);  // integers below 2^29: no rounding
  if (sum == 0.0) return 0.0f;
  const double last = std::ldexp(1.0, std::max(exponent_of(sum) - 23, 0));
  return static_cast<float>(std::trunc(sum / last) * last * unit);
}

}  // namespace

uint16_t to_half(float x) {
  const uint16_t sign = static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16 & 0x8000);
  const double size = std::abs(static_cast<double>(x));
  if (std::isnan(x)) return 0x7FFF;
  if (size >= 65520.0) return static_cast<uint16_t>(sign | 0x7C00);
  const int exponent = std::max(exponent_of(size), -14);  // below lie multiples of 2^-24
  const int significand = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + significand));
}

float from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, size = half & 0x7FFF;
  const float value = size < 0x7C00 ? std::bit_cast<float>(size << 13) * 0x1p112f : std::bit_cast<float>(size << 13 | 0x7F800000);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

uint16_t to_bfloat(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if (std::isnan(x)) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float from_bfloat(uint16_t bfloat) {
  return std::bit_cast<float>(static_cast<uint32_t>(bfloat) << 16);
}

void multiply_halves(const char* type, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Place place) {
  const auto value = std::strcmp(type, "f16") == 0 ? from_half : from_bfloat;
  const auto at = [&](uint32_t word, int k) { return double(value(static_cast<uint16_t>(k % 2 ? word >> 16 : word))); };
  Lane own, lanes[kLanes];
  std::memcpy(own.a, a, sizeof own.a);
  std::memcpy(own.b, b, sizeof own.b);
  gather(&own, lanes, sizeof own, 0xFFFFFFFFu, place);
  const int lane = static_cast<int>(self->lane), g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
    double terms[kInner + 1] = {c[i]};
    for (int k = 0; k < kInner; ++k) {
      const uint32_t x = lanes[row % 8 * 4 + k % 8 / 2].a[row / 8 + 2 * (k / 8)];
      const uint32_t y = lanes[column * 4 + k % 8 / 2].b[k / 8];
      terms[1 + k] = at(x, k) * at(y, k);
    }
    c[i] = add_truncated(terms);
  }
}

void exchange_rows(uint32_t (&words)[4], const uint32_t (&row)[4], bool is_transposed, Place place) {
  uint32_t rows[kLanes][4];
  gather(row, rows, sizeof row, 0xFFFFFFFFu, place);
  const unsigned g = self->lane / 4, t = self->lane % 4;
  const auto half = [&](unsigned matrix, unsigned row, unsigned column) {
    return rows[8 * matrix + row][column / 2] >> 16 * (column % 2) & 0xFFFF;
  };
  for (unsigned i = 0; i < 4; ++i)
    words[i] = is_transposed ? half(i, 2 * t, g) | half(i, 2 * t + 1, g) << 16 : rows[8 * i + g][t];
}

}  // namespace emulator
