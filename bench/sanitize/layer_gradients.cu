// Compares the kernel of all layers' gradients with float64 loops on the host, at ragged sizes. build.sh builds it.

#include <algorithm>
#include <memory>

#include "../../csrc/cuda/layer_gradients.cu"
#include "arrays.h"
#include "matrices.h"

namespace lae {
namespace {

using Numbers = std::vector<double>;

// What precedes a layer, if any: the norm and ReLU of what the layer before it gave.
struct Before {
  int64_t n, width;
  Array<float> x, statistics, weight, bias;
  Numbers normalized, after;  // [n, width]; after the ReLU, or x itself

  Before(int64_t n, int64_t width, bool has_norm, std::mt19937_64& engine)
      : n(n), width(width), x(n * width), statistics(2 * n), weight(width), bias(width), normalized(n * width),
        after(n * width) {
    fill(x, engine, 3.0, 1.0), fill(weight, engine, 1.0), fill(bias, engine, 1.0);
    for (int64_t r = 0; r < n; ++r) {
      double mean = 0.0, square = 0.0;
      for (int64_t i = r * width; i < (r + 1) * width; ++i) mean += x.host[i] / static_cast<double>(width);
      for (int64_t i = r * width; i < (r + 1) * width; ++i)
        square += std::pow(x.host[i] - mean, 2) / static_cast<double>(width);
      statistics.host[2 * r] = static_cast<float>(mean);
      statistics.host[2 * r + 1] = static_cast<float>(1 / std::sqrt(square + 1e-5));
      for (int64_t i = r * width; i < (r + 1) * width; ++i) {
        normalized[i] = (x.host[i] - double{statistics.host[2 * r]}) * statistics.host[2 * r + 1];
        const double before = normalized[i] * weight.host[i % width] + bias.host[i % width];
        after[i] = has_norm ? std::max(0.0, before) : x.host[i];
      }
    }
    statistics.upload();
  }
};

// A layer's gradients: those that the kernel is given, and where it writes.
struct Gradients {
  Array<float> grad, means, weight_grad, bias_grad, norm_weight_grad, norm_bias_grad;

  Gradients(int64_t n, int64_t k, int64_t m)
      : grad(n * m), means(2 * n), weight_grad(m * k), bias_grad(m), norm_weight_grad(m), norm_bias_grad(m) {}
};

// The sum of each column of terms [n, width], whose error is held to that of sums of so large terms.
void compare_sums(Tally& tally, const char* what, const Array<float>& got, const Numbers& terms, const Numbers& sizes) {
  const std::vector<float> sums = download(got);
  const int64_t width = got.size();
  for (int64_t c = 0; c < width; ++c) {
    double sum = 0.0, size = 0.0;
    for (int64_t i = c; i < static_cast<int64_t>(terms.size()); i += width) sum += terms[i], size += sizes[i];
    tally.compare(what, c, sums[c], sum, 8 * kRounding * size);
  }
}

// A network of these widths, its input's first.
void compare_gradients(Tally& tally, int64_t n, const std::vector<int64_t>& widths) {
  const size_t n_layers = widths.size() - 1;
  std::mt19937_64 engine(n * 1009 + static_cast<int64_t>(n_layers));
  std::vector<std::unique_ptr<Before>> before;
  std::vector<std::unique_ptr<Gradients>> gradients;
  for (size_t i = 0; i < n_layers; ++i) {
    before.push_back(std::make_unique<Before>(n, widths[i], i > 0, engine));
    gradients.push_back(std::make_unique<Gradients>(n, widths[i], widths[i + 1]));
  }
  std::vector<Numbers> at_output(n_layers), sizes(n_layers);  // the gradient at a linear layer's output
  LayerGradientsArgs args{n, {}};
  for (size_t i = 0; i < n_layers; ++i) {
    const int64_t k = widths[i], m = widths[i + 1];
    Gradients& g = *gradients[i];
    fill(g.grad, engine, 1e6);  // beyond float16
    at_output[i].assign(g.grad.host.begin(), g.grad.host.end());
    for (double v : at_output[i]) sizes[i].push_back(std::abs(v));
    const Before& own = *before[i];
    LayerGradientArgs a = {};
    a.k = static_cast<int>(k), a.m = static_cast<int>(m);
    a.x = own.x.device(), a.grad = g.grad.device();
    a.weight_grad = g.weight_grad.device(), a.bias_grad = g.bias_grad.device();
    if (i > 0) a.x_statistics = own.statistics.device(), a.x_norm_weight = own.weight.device(), a.x_norm_bias = own.bias.device();
    if (i + 1 < n_layers) {
      const Before& next = *before[i + 1];
      for (int64_t r = 0; r < n; ++r) {
        double mean = 0.0, slope = 0.0;
        for (int64_t c = 0; c < m; ++c) {
          const double v = double{g.grad.host[r * m + c]} * next.weight.host[c];
          mean += v / static_cast<double>(m), slope += v * next.normalized[r * m + c] / static_cast<double>(m);
        }
        const double rstd = next.statistics.host[2 * r + 1];
        mean = g.means.host[2 * r] = static_cast<float>(mean), slope = g.means.host[2 * r + 1] = static_cast<float>(slope);
        for (int64_t c = 0; c < m; ++c) {
          const double v = double{g.grad.host[r * m + c]} * next.weight.host[c], bend = next.normalized[r * m + c] * slope;
          at_output[i][r * m + c] = rstd * (v - mean - bend);
          sizes[i][r * m + c] = rstd * (std::abs(v) + std::abs(mean) + std::abs(bend));
        }
      }
      g.means.upload();
      a.y = next.x.device(), a.y_statistics = next.statistics.device(), a.y_norm_weight = next.weight.device();
      a.y_means = g.means.device();
      a.y_norm_weight_grad = g.norm_weight_grad.device(), a.y_norm_bias_grad = g.norm_bias_grad.device();
    }
    args.layers.push_back(a);
  }
  Cuda::layer_gradients(args);
  check(cudaDeviceSynchronize(), "layer_gradients");
  for (size_t i = 0; i < n_layers; ++i) {
    const int64_t k = widths[i], m = widths[i + 1];
    tally.name("layer_gradients, layer %lld of %lld, [%lld, %lld] -> %lld", (long long)i, (long long)n_layers, (long long)n,
               (long long)k, (long long)m);
    Numbers transposed(m * n);
    for (int64_t j = 0; j < m * n; ++j) transposed[j] = at_output[i][j % n * m + j / n];
    const Product exact = product_of(transposed, m, n, k, [&](int64_t r, int64_t c) { return before[i]->after[r * k + c]; });
    const Gradients& g = *gradients[i];
    compare_product(tally, "weight", download(g.weight_grad), exact, 8e-6);  // 16 bits instead of 24
    compare_sums(tally, "bias", g.bias_grad, at_output[i], sizes[i]);
    if (i + 1 == n_layers) continue;
    Numbers terms(g.grad.host.begin(), g.grad.host.end()), absolute;
    for (double v : terms) absolute.push_back(std::abs(v));
    compare_sums(tally, "norm's bias", g.norm_bias_grad, terms, absolute);
    for (int64_t j = 0; j < n * m; ++j) {
      terms[j] *= before[i + 1]->normalized[j];
      absolute[j] = std::abs(terms[j]);
    }
    compare_sums(tally, "norm's weight", g.norm_weight_grad, terms, absolute);
  }
}

void compare_all(Tally& tally, bool is_quick) {
  compare_gradients(tally, 1, {4, 4, 4});
  compare_gradients(tally, 0, {8, 12, 4});
  compare_gradients(tally, 199, {36, 100, 68, 12});
  compare_gradients(tally, 65, std::vector<int64_t>(19, 8));  // more layers than a launch takes
  compare_gradients(tally, 34, {132, 8});
  if (is_quick) return;
  compare_gradients(tally, 512, {8, 256, 256, 256, 784});
  compare_gradients(tally, 130, {784, 256, 44, 1028});
}

}  // namespace
}  // namespace lae

int main(int argc, char** argv) {
  Tally tally;
  lae::compare_all(tally, is_quick(argc, argv));
  return tally.report("layer_gradients");
}
