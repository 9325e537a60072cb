// Matrices of random numbers, and their products in float64.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "arrays.h"

namespace lae {

constexpr double kRounding = 0x1p-24;  // float32's

inline void fill(Array<float>& array, std::mt19937_64& engine, double size, double shift = 0.0) {
  std::normal_distribution<double> normal;
  for (float& v : array.host) v = static_cast<float>(size * normal(engine) + shift);
  array.upload();
}

inline std::vector<float> download(const Array<float>& array) {
  std::vector<float> values(array.host.size());
  check(cudaMemcpy(values.data(), array.device(), values.size() * sizeof(float), cudaMemcpyDeviceToHost), "download");
  return values;
}

// What float64 says of a product: the numbers, and the norm that a row of them would have if its factors were random.
struct Product {
  std::vector<double> numbers, sizes;  // [n, width], [n]
};

// x [n, inner] times w: [inner, width] by f(inner, column).
template <typename F>
Product product_of(const std::vector<double>& x, int64_t n, int64_t inner, int64_t width, F w) {
  Product result{std::vector<double>(n * width), std::vector<double>(n)};
  double w_size = 0.0;
  for (int64_t i = 0; i < inner * width; ++i) w_size += std::pow(w(i / width, i % width), 2);
  for (int64_t r = 0; r < n; ++r) {
    double size = 0.0;
    for (int64_t i = 0; i < inner; ++i) size += x[r * inner + i] * x[r * inner + i];
    result.sizes[r] = std::sqrt(size * w_size / static_cast<double>(inner));
    for (int64_t c = 0; c < width; ++c)
      for (int64_t i = 0; i < inner; ++i) result.numbers[r * width + c] += x[r * inner + i] * w(i, c);
  }
  return result;
}

// The error of all rows is held to `bound` times their norm, and that of one row, by chance larger, to twice that.
inline void compare_product(Tally& tally, const char* what, const std::vector<float>& got, const Product& expected, double bound) {
  const int64_t n = static_cast<int64_t>(expected.sizes.size());
  const int64_t width = n == 0 ? 0 : static_cast<int64_t>(expected.numbers.size()) / n;
  double total_error = 0.0, total_size = 0.0;
  for (int64_t r = 0; r < n; ++r) {
    const double size = expected.sizes[r];
    double error = 0.0;
    for (int64_t i = r * width; i < (r + 1) * width; ++i) {
      tally.compare(what, i, got[i], expected.numbers[i], 2 * bound * size);
      error += std::pow(got[i] - expected.numbers[i], 2);
    }
    tally.compare("error of a row", r, std::sqrt(error), 0.0, 2 * bound * size);
    total_error += error, total_size += size * size;
  }
  tally.compare("error of all rows", 0, std::sqrt(total_error), 0.0, bound * std::sqrt(total_size));
}

}  // namespace lae
