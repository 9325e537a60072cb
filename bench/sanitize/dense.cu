// Compares the kernels between a network's products with float64 loops on the host, at ragged sizes. build.sh builds it.

#include <algorithm>

#include "../../csrc/cuda/dense.cu"
#include "arrays.h"

namespace lae {
namespace {

template <typename T>
void fill(Array<T>& array, std::mt19937_64& engine, double shift = 0.0) {
  std::normal_distribution<double> normal;
  for (auto& v : array.host) v = static_cast<T>(normal(engine) + shift);
  array.upload();
}

template <typename T>
void compare_norm(Tally& tally, int64_t n, int64_t d, int64_t offset) {
  constexpr double kRounding = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52, kEps = 1e-5;
  tally.name("norm_relu %s [%lld, %lld], offset %lld", sizeof(T) == 4 ? "float32" : "float64", (long long)n, (long long)d,
             (long long)offset);
  std::mt19937_64 engine(n * 1000003 + d);
  Array<T> y(n * d, offset), weight(d, offset), bias(d, offset), out(n * d, offset), rstd(n);
  fill(y, engine, 1.0), fill(weight, engine), fill(bias, engine);
  Cuda::norm_relu(NormReluArgs<T>{n, d, y.device(), weight.device(), bias.device(), kEps, out.device(), rstd.device()});
  check(cudaDeviceSynchronize(), tally.label);
  std::vector<double> bounds(n * d);
  for (int64_t r = 0; r < n; ++r) {
    double mean = 0.0, variance = 0.0;
    for (int64_t i = 0; i < d; ++i) mean += y.host[r * d + i] / static_cast<double>(d);
    for (int64_t i = 0; i < d; ++i) variance += std::pow(y.host[r * d + i] - mean, 2) / static_cast<double>(d);
    const double inverse = 1 / std::sqrt(variance + kEps);
    rstd.host[r] = static_cast<T>(inverse);
    for (int64_t i = 0; i < d; ++i) {
      const int64_t k = r * d + i;
      const double normalized = (y.host[k] - mean) * inverse;
      bounds[k] = 8 * kRounding * ((std::abs(y.host[k]) + std::abs(mean)) * inverse + std::abs(normalized)) *
                      (1 + std::abs(weight.host[i])) + 4 * kRounding * std::abs(bias.host[i]);
      out.host[k] = static_cast<T>(std::max(0.0, normalized * weight.host[i] + bias.host[i]));
      y.host[k] = static_cast<T>(normalized);
    }
  }
  y.compare(tally, "normalized", [&](int64_t k) { return bounds[k]; });
  out.compare(tally, "out", [&](int64_t k) { return bounds[k]; });
  rstd.compare(tally, "rstd", [&](int64_t r) { return 64 * kRounding * rstd.host[r] * (d < 3 ? 1e3 : 1.0); });
}

template <typename T>
void compare_backward(Tally& tally, int64_t n, int64_t d, int64_t offset) {
  constexpr double kRounding = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
  tally.name("norm_relu_backward %s [%lld, %lld], offset %lld", sizeof(T) == 4 ? "float32" : "float64", (long long)n,
             (long long)d, (long long)offset);
  std::mt19937_64 engine(n * 1000003 + d);
  Array<T> grad(n * d, offset), out(n * d, offset), normalized(n * d, offset), rstd(n), weight(d, offset),
      y_grads(n * d, offset), sums(3 * d);
  fill(grad, engine), fill(out, engine), fill(normalized, engine), fill(rstd, engine, 3.0), fill(weight, engine);
  Cuda::norm_relu_backward(NormReluBackwardArgs<T>{n, d, grad.device(), out.device(), normalized.device(), rstd.device(),
                                                   weight.device(), y_grads.device()});
  Cuda::norm_relu_sums(NormReluSumsArgs<T>{n, d, grad.device(), out.device(), normalized.device(), y_grads.device(),
                                           sums.device()});
  check(cudaDeviceSynchronize(), tally.label);
  std::vector<double> bounds(n * d), total(3 * d), size(3 * d);
  for (int64_t r = 0; r < n; ++r) {
    double mean = 0.0, slope = 0.0, terms = 0.0;
    const auto masked = [&](int64_t i) { return out.host[r * d + i] <= T(0) ? 0.0 : double(grad.host[r * d + i]); };
    for (int64_t i = 0; i < d; ++i) {
      const double g = masked(i) * weight.host[i] / static_cast<double>(d);
      mean += g, slope += g * normalized.host[r * d + i];
      terms += std::abs(g) * (1 + std::abs(normalized.host[r * d + i]));
    }
    for (int64_t i = 0; i < d; ++i) {
      const int64_t k = r * d + i;
      const double g = masked(i), x = normalized.host[k], y_grad = rstd.host[r] * (g * weight.host[i] - mean - x * slope);
      bounds[k] = 8 * kRounding * std::abs(rstd.host[r]) * (std::abs(g * weight.host[i]) + (1 + std::abs(x)) * terms);
      const double parts[] = {g * x, g, y_grad}, sizes[] = {std::abs(g * x), std::abs(g), bounds[k] / kRounding};
      for (int s = 0; s < 3; ++s) total[s * d + i] += parts[s], size[s * d + i] += sizes[s];
      y_grads.host[k] = static_cast<T>(y_grad);
    }
  }
  for (int64_t i = 0; i < 3 * d; ++i) sums.host[i] = static_cast<T>(total[i]);
  y_grads.compare(tally, "gradient", [&](int64_t k) { return bounds[k]; });
  sums.compare(tally, "sums", [&](int64_t i) { return 16 * kRounding * size[i]; });
}

template <typename T>
void compare_norms(Tally& tally, bool is_quick) {
  std::vector<std::pair<int64_t, int64_t>> sizes = {{1, 1}, {0, 5}, {3, 7}, {5, 33}, {9, 256}, {1030, 9}};
  if (!is_quick) sizes.insert(sizes.end(), {{4, 32}, {517, 130}, {1030, 31}, {2, 1000}});
  for (const auto& [n, d] : sizes)
    for (int64_t offset : {0, 1}) {
      if (d > 1) compare_norm<T>(tally, n, d, offset);
      compare_backward<T>(tally, n, d, offset);
    }
}

// Rows of all lengths; of several rows, every third is accepted, or all but every third.
void compare_keep(Tally& tally, bool is_quick, int64_t n_pairs, int64_t n_rows, int64_t offset, bool is_accepted) {
  tally.name("keep %lld pairs of %lld rows, offset %lld, accepted %d", (long long)n_pairs, (long long)n_rows,
             (long long)offset, (int)is_accepted);
  const int64_t lengths[] = {1, 15, 16, 17, 255, 257, 4096, 70001, 300000}, n_lengths = is_quick ? 7 : 9;
  std::vector<std::unique_ptr<Array<char>>> latest, previous;
  Array<uint8_t> flags(n_rows);
  for (int64_t r = 0; r < n_rows; ++r) flags.host[r] = (r % 3 == 0) == is_accepted;
  flags.upload();
  KeepArgs args{{}, {}, {}, n_rows, reinterpret_cast<const bool*>(flags.device())};
  for (int64_t i = 0; i < n_pairs; ++i) {
    const int64_t row = (lengths[i % n_lengths] + n_rows - 1) / n_rows, n = row * n_rows;
    latest.push_back(std::make_unique<Array<char>>(n, offset));
    previous.push_back(std::make_unique<Array<char>>(n));
    for (int64_t k = 0; k < n; ++k) {
      latest[i]->host[k] = static_cast<char>(k % 127);
      previous[i]->host[k] = static_cast<char>(100 - (k + i) % 113);
    }
    latest[i]->upload();
    previous[i]->upload();
    args.latest.push_back(latest[i]->device());
    args.previous.push_back(previous[i]->device());
    args.row_bytes.push_back(row);
  }
  Cuda::keep(args);
  check(cudaDeviceSynchronize(), tally.label);
  for (int64_t i = 0; i < n_pairs; ++i) {
    for (size_t k = 0; k < latest[i]->host.size(); ++k)
      if (!flags.host[k / args.row_bytes[i]]) latest[i]->host[k] = previous[i]->host[k];
    latest[i]->compare(tally, "latest");
  }
}

}  // namespace
}  // namespace lae

int main(int argc, char** argv) {
  const bool quick = is_quick(argc, argv);
  Tally tally;
  lae::compare_norms<float>(tally, quick);
  lae::compare_norms<double>(tally, quick);
  for (int64_t n_pairs : quick ? std::vector<int64_t>{1, 49} : std::vector<int64_t>{0, 1, 48, 49, 101})
    for (int64_t n_rows : quick ? std::vector<int64_t>{1, 7} : std::vector<int64_t>{1, 7, 512})
      for (int64_t offset : {0, 1})
        for (bool is_accepted : {false, true}) lae::compare_keep(tally, quick, n_pairs, n_rows, offset, is_accepted);
  return tally.report("dense");
}
