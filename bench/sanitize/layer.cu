// Compares the kernels of whole layers with float64 loops on the host, at ragged sizes. build.sh builds it.

#include <algorithm>

#include "../../csrc/cuda/layer.cu"
#include "arrays.h"
#include "matrices.h"

namespace lae {
namespace {

constexpr double kEps = 1e-5;

// Mean, and sum of squared distances from it, of `size` numbers.
std::pair<double, double> moments_of(const float* values, int64_t size) {
  double mean = 0.0, squares = 0.0;
  for (int64_t i = 0; i < size; ++i) mean += values[i] / static_cast<double>(size);
  for (int64_t i = 0; i < size; ++i) squares += std::pow(values[i] - mean, 2);
  return {mean, squares};
}

// Calls f(index, begin, size) for all parts of n rows.
template <typename F>
void for_parts(int64_t n, int64_t width, F f) {
  for (int64_t r = 0; r < n; ++r)
    for (int64_t p = 0; p < parts_of(width); ++p)
      f(2 * (r * parts_of(width) + p), r * width + p * kPart, std::min<int64_t>(kPart, width - p * kPart));
}

// A tensor [n, width] before a norm and ReLU, its moments, the norm's parameters; and what float64 says of it.
struct Normed {
  int64_t n, width;
  Array<float> y, moments, weight, bias;
  std::vector<double> normalized, before, after, rstd;  // [n, width] but for rstd [n]; before and after the ReLU

  Normed(int64_t n, int64_t width, std::mt19937_64& engine)
      : n(n), width(width), y(n * width), moments(n * parts_of(width) * 2), weight(width), bias(width),
        normalized(n * width), before(n * width), after(n * width), rstd(n) {
    fill(y, engine, 3.0, 1.0), fill(weight, engine, 1.0), fill(bias, engine, 1.0);
    for_parts(n, width, [&](int64_t at, int64_t begin, int64_t size) {
      const auto [mean, squares] = moments_of(&y.host[begin], size);
      moments.host[at] = static_cast<float>(mean), moments.host[at + 1] = static_cast<float>(squares);
    });
    moments.upload();
    for (int64_t r = 0; r < n; ++r) {
      const auto [mean, squares] = moments_of(&y.host[r * width], width);
      rstd[r] = 1 / std::sqrt(squares / static_cast<double>(width) + kEps);
      for (int64_t i = r * width; i < (r + 1) * width; ++i) {
        normalized[i] = (y.host[i] - mean) * rstd[r];
        before[i] = normalized[i] * weight.host[i % width] + bias.host[i % width];
        after[i] = std::max(0.0, before[i]);
      }
    }
  }
};

void compare_forward(Tally& tally, int64_t n, int64_t k, int64_t m, bool has_norm) {
  tally.name("layer_forward [%lld, %lld] -> %lld%s", (long long)n, (long long)k, (long long)m, has_norm ? ", norm" : "");
  std::mt19937_64 engine(n * 1000003 + k * 1009 + m);
  Normed x(n, k, engine);
  if (!has_norm) {  // rows of all sizes, beyond float16's
    for (int64_t i = 0; i < n * k; ++i) x.y.host[i] *= std::pow(10.0f, static_cast<float>(i / k % 3 * 15 - 15));
    x.y.upload();
  }
  Array<float> weight(m * k), bias(m), y(n * m), moments(n * parts_of(m) * 2), statistics(2 * n);
  fill(weight, engine, 1 / std::sqrt(static_cast<double>(k))), fill(bias, engine, has_norm ? 0.1 : 1e-20);
  Cuda::layer_forward(LayerForwardArgs{n, k, m, x.y.device(), has_norm ? x.moments.device() : nullptr, x.weight.device(),
                                       x.bias.device(), static_cast<float>(kEps), weight.device(), bias.device(),
                                       y.device(), moments.device(), has_norm ? statistics.device() : nullptr});
  check(cudaDeviceSynchronize(), tally.label);
  const std::vector<float> got = download(y);
  Product exact = product_of(has_norm ? x.after : std::vector<double>(x.y.host.begin(), x.y.host.end()), n, k, m,
                             [&](int64_t i, int64_t c) { return weight.host[c * k + i]; });
  for (int64_t i = 0; i < n * m; ++i) exact.numbers[i] += bias.host[i % m];
  compare_product(tally, "y", got, exact, 2e-7);
  std::vector<double> bounds(moments.host.size());
  for_parts(n, m, [&](int64_t at, int64_t begin, int64_t size) {
    const auto [mean, squares] = moments_of(&got[begin], size);
    double largest = 0.0;
    for (int64_t i = begin; i < begin + size; ++i) largest = std::max(largest, std::abs(double(got[i])));
    moments.host[at] = static_cast<float>(mean), moments.host[at + 1] = static_cast<float>(squares);
    bounds[at] = 8 * kRounding * largest;
    bounds[at + 1] = 16 * kRounding * squares + static_cast<double>(size) * bounds[at] * bounds[at];
  });
  moments.compare(tally, "moments", [&](int64_t i) { return bounds[i]; });
  if (!has_norm) return;
  for (int64_t r = 0; r < n; ++r) {
    statistics.host[2 * r] = static_cast<float>(moments_of(&x.y.host[r * k], k).first);
    statistics.host[2 * r + 1] = static_cast<float>(x.rstd[r]);
  }
  statistics.compare(tally, "statistics", [&](int64_t i) { return 32 * kRounding * (i % 2 ? x.rstd[i / 2] : 1 / x.rstd[i / 2]); });
}

// The sums that a norm's backward pass needs, of a gradient [n, width] after its ReLU.
std::vector<double> sums_of(const Normed& norm, const std::vector<float>& grad) {
  std::vector<double> sums(norm.moments.host.size());
  for_parts(norm.n, norm.width, [&](int64_t at, int64_t begin, int64_t size) {
    for (int64_t i = begin; i < begin + size; ++i) {
      const double g = static_cast<double>(grad[i]) * norm.weight.host[i % norm.width];
      sums[at] += g, sums[at + 1] += g * norm.normalized[i];
    }
  });
  return sums;
}

void compare_backward(Tally& tally, int64_t n, int64_t k, int64_t m, bool has_norm, bool has_input_norm) {
  tally.name("layer_backward [%lld, %lld] -> %lld%s%s", (long long)n, (long long)m, (long long)k,
             has_norm ? ", norm" : "", has_input_norm ? ", norm of the input" : "");
  std::mt19937_64 engine(n * 1000003 + k * 1009 + m);
  Normed x(n, k, engine), y(n, m, engine);
  Array<float> grad(n * m), weight(m * k), sums(n * parts_of(m) * 2), x_grad(n * k), x_sums(n * parts_of(k) * 2), means(2 * n);
  fill(weight, engine, 1 / std::sqrt(static_cast<double>(m))), fill(grad, engine, 1e6);  // beyond float16
  if (has_norm)
    for (int64_t i = 0; i < n * m; ++i) grad.host[i] *= y.after[i] > 0;
  const std::vector<double> exact_sums = sums_of(y, grad.host);
  for (int64_t i = 0; i < sums.size(); ++i) sums.host[i] = static_cast<float>(exact_sums[i]);
  grad.upload(), sums.upload();
  const auto given = [](bool is_given, const Array<float>& array) { return is_given ? array.device() : nullptr; };
  Cuda::layer_backward(LayerBackwardArgs{
      n, k, m, grad.device(), given(has_norm, y.y), given(has_norm, y.moments), given(has_norm, y.weight),
      given(has_norm, sums), static_cast<float>(kEps), weight.device(), given(has_input_norm, x.y),
      given(has_input_norm, x.moments), given(has_input_norm, x.weight), given(has_input_norm, x.bias),
      static_cast<float>(kEps), x_grad.device(), given(has_input_norm, x_sums), given(has_norm, means)});
  check(cudaDeviceSynchronize(), tally.label);
  std::vector<double> g(grad.host.begin(), grad.host.end());  // at y
  for (int64_t r = 0; has_norm && r < n; ++r) {
    double mean = 0.0, slope = 0.0;
    for (int64_t p = 0; p < parts_of(m); ++p) {
      mean += exact_sums[2 * (r * parts_of(m) + p)] / static_cast<double>(m);
      slope += exact_sums[2 * (r * parts_of(m) + p) + 1] / static_cast<double>(m);
    }
    for (int64_t i = r * m; i < (r + 1) * m; ++i)
      g[i] = y.rstd[r] * (g[i] * y.weight.host[i % m] - mean - y.normalized[i] * slope);
    means.host[2 * r] = static_cast<float>(mean), means.host[2 * r + 1] = static_cast<float>(slope);
  }
  if (has_norm) means.compare(tally, "means", [](int64_t) { return 1e6 * 32 * kRounding; });
  Product exact = product_of(g, n, m, k, [&](int64_t i, int64_t c) { return weight.host[i * k + c]; });
  const std::vector<float> got = download(x_grad);
  for (int64_t i = 0; has_input_norm && i < n * k; ++i) {
    const bool is_doubtful = std::abs(x.before[i]) < 1e-5;  // rounding decides whether the ReLU cuts off
    exact.numbers[i] = is_doubtful ? got[i] : x.before[i] < 0 ? 0.0 : exact.numbers[i];
  }
  compare_product(tally, "gradient", got, exact, 6e-6);  // 16 bits instead of 24
  if (!has_input_norm) return;
  const std::vector<double> wanted = sums_of(x, got);
  for (int64_t i = 0; i < x_sums.size(); ++i) x_sums.host[i] = static_cast<float>(wanted[i]);
  x_sums.compare(tally, "sums", [&](int64_t i) { return 1e-5 * exact.sizes[i / 2 / parts_of(k)]; });
}

void compare_all(Tally& tally, bool is_quick) {
  struct Case {
    int64_t n, k, m;
    bool has_norm;
  };
  std::vector<Case> cases = {{1, 4, 4, true},     {0, 8, 8, true},    {33, 36, 100, true}, {5, 896, 36, true},
                             {34, 256, 68, true}, {40, 8, 64, false}, {3, 784, 32, false},
                             {66, 8, 132, true}};  // the last one: several tiles a block
  if (!is_quick)
    cases.insert(cases.end(), {{100, 256, 784, true}, {64, 784, 256, false}, {129, 880, 8, true}, {70, 200, 44, true},
                               {31, 60, 892, true}});
  for (const Case& c : cases) compare_forward(tally, c.n, c.k, c.m, c.has_norm);
  for (const Case& c : cases) compare_backward(tally, c.n, c.m, c.k, c.has_norm, true);
  for (const Case& c : cases) compare_backward(tally, c.n, c.m, c.k, !c.has_norm, false);
}

}  // namespace
}  // namespace lae

int main(int argc, char** argv) {
  Tally tally;
  lae::compare_all(tally, is_quick(argc, argv));
  return tally.report("layer");
}
