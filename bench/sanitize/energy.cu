// Compares the energy kernels with loops on the host, at ragged sizes. build.sh builds it.
//
// Bernoulli derivatives must agree to the last bit. The other likelihoods begin with exp and cosh of the scale, which
// host and device round differently: they agree to rounding, as all sums do.

#include <algorithm>
#include <array>

#include "../../csrc/cuda/energy.cu"
#include "arrays.h"

namespace lae {
namespace {

template <Likelihood kLikelihood, typename T>
void compare_energy(Tally& tally, int64_t r, int64_t n, int64_t d, double scale, int64_t offset, bool in_place) {
  constexpr bool kHasScale = kLikelihood != kBernoulli;
  constexpr double kRounding = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
  tally.name("energy %d %s [%lld, %lld] of %lld images, scale %g, offset %lld%s", (int)kLikelihood,
             sizeof(T) == 4 ? "float32" : "float64", (long long)r, (long long)d, (long long)n, scale, (long long)offset,
             in_place ? ", in place" : "");
  Array<T> output(r * d, offset), x(n * d, offset), derivative(r * d, offset), log_scale(1);
  Array<double> energy(r), slope(kHasScale ? r : 0);
  std::mt19937_64 engine(r * 1000003 + d);
  std::normal_distribution<double> normal;
  for (auto& v : x.host) v = static_cast<T>(static_cast<double>(engine() % 256) / 255);  // 0 and 1 among them
  for (int64_t i = 0; i < r * d; ++i)
    output.host[i] = static_cast<T>(kHasScale ? x.host[i % (n * d)] + 0.3 * normal(engine) : 5 * normal(engine));
  if (r * d > 3) output.host[3] = INFINITY;
  if (r * d > 8) output.host[r * d - 2] = NAN;
  log_scale.host[0] = static_cast<T>(std::log(scale));
  for (auto* a : {&output, &x, &log_scale}) a->upload();

  Array<T>& to = in_place ? output : derivative;
  Cuda::energy(EnergyArgs<T>{r, n, d, kLikelihood, output.device(), x.device(), kHasScale ? log_scale.device() : nullptr,
                             energy.device(), to.device(), kHasScale ? slope.device() : nullptr});
  check(cudaDeviceSynchronize(), tally.label);

  const PixelScale shared = pixel_scale(kLikelihood, kHasScale ? static_cast<double>(log_scale.host[0]) : 0.0);
  const PixelOf<kLikelihood, T> pixel(shared);
  std::vector<double> sizes(r), slope_sizes(r);  // the terms of the sums, without their signs
  for (int64_t row = 0; row < r; ++row) {
    const double constants = kLikelihood == kGaussian ? static_cast<double>(d) : 0.0;
    double total = constants * shared.constant, total_slope = constants * shared.slope;
    sizes[row] = std::abs(total);
    slope_sizes[row] = std::abs(total_slope);
    for (int64_t i = row * d; i < (row + 1) * d; ++i) {
      const auto p = pixel(Fma{}, output.host[i], x.host[i % (n * d)]);
      total += p.energy;
      total_slope += p.log_scale_derivative;
      sizes[row] += std::abs(static_cast<double>(p.energy));
      slope_sizes[row] += std::abs(static_cast<double>(p.log_scale_derivative));
      to.host[i] = static_cast<T>(p.derivative);
    }
    energy.host[row] = total;
    if (kHasScale) slope.host[row] = total_slope;
  }
  const double own = kHasScale ? (kLikelihood == kGaussian ? 8 * kRounding : 1e-12) : 0.0;  // the relative error of one term
  energy.compare(tally, "energy", [&](int64_t row) { return (1e-13 + own) * (1 + sizes[row]); });
  slope.compare(tally, "log_scale_derivative", [&](int64_t row) { return (1e-12 + own) * (1 + slope_sizes[row]); });
  to.compare(tally, "derivative", [&](int64_t i) {
    if (!kHasScale) return 0.0;
    return 4 * kRounding * std::abs(static_cast<double>(to.host[i])) + own * shared.inverse;
  });
}

template <typename T>
void compare_likelihoods(Tally& tally, bool is_quick) {
  std::vector<std::array<int64_t, 3>> sizes = {{1, 1, 1}, {6, 3, 255}, {4, 4, 256}, {9, 3, 257}, {5, 5, 785}};
  if (!is_quick) sizes.insert(sizes.end(), {{2, 1, 7}, {4, 2, 784}, {3, 1, 1000}, {2, 2, 1024}, {300, 100, 12}});
  for (const auto& [r, n, d] : sizes)
    for (int64_t offset : {0, 1})
      for (bool in_place : {false, true}) {
        compare_energy<kBernoulli, T>(tally, r, n, d, 1, offset, in_place);
        for (double scale : is_quick ? std::vector<double>{0.03} : std::vector<double>{1e-3, 0.03, 1.0}) {
          compare_energy<kGaussian, T>(tally, r, n, d, scale, offset, in_place);
          compare_energy<kLogistic, T>(tally, r, n, d, scale, offset, in_place);
        }
      }
  for (int64_t offset : {0, 1}) {  // so many rows that half a warp serves each; the last one has the warp for itself
    compare_energy<kBernoulli, T>(tally, 8197, 1171, 12, 1, offset, false);
    if (is_quick) continue;
    compare_energy<kBernoulli, T>(tally, 8193, 3, 785, 1, offset, false);
    compare_energy<kGaussian, T>(tally, 8197, 1171, 12, 0.03, offset, true);
    compare_energy<kLogistic, T>(tally, 8197, 1171, 12, 0.03, offset, true);
  }
}

template <typename T>
void compare_prior(Tally& tally, int64_t r, int64_t nz) {
  constexpr double kRounding = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52, kConstant = 0.91893853320467274178;
  tally.name("add_prior_ %s [%lld, %lld]", sizeof(T) == 4 ? "float32" : "float64", (long long)r, (long long)nz);
  std::mt19937_64 engine(r * 1000003 + nz);
  std::normal_distribution<double> normal;
  Array<double> energy(r);
  Array<T> z_grad(r * nz, 1), z(r * nz);
  for (auto& v : energy.host) v = 100 * normal(engine);
  for (auto* a : {&z_grad, &z})
    for (auto& v : a->host) v = static_cast<T>(normal(engine));
  if (r * nz > 8) z.host[7] = NAN;
  energy.upload(), z_grad.upload(), z.upload();
  Cuda::add_prior(PriorArgs<T>{r, nz, energy.device(), z_grad.device(), z.device(), nz * kConstant});
  check(cudaDeviceSynchronize(), tally.label);
  std::vector<double> sizes(r);
  for (int64_t row = 0; row < r; ++row) {
    double squares = 0.0;
    for (int64_t i = row * nz; i < (row + 1) * nz; ++i) {
      squares += static_cast<double>(z.host[i]) * z.host[i];
      z_grad.host[i] += z.host[i];
    }
    sizes[row] = squares;
    energy.host[row] += 0.5 * squares + nz * kConstant;
  }
  z_grad.compare(tally, "z_grad");
  energy.compare(tally, "energy", [&](int64_t row) { return 8 * kRounding * sizes[row] + 1e-12; });
}

template <typename T>
void compare_priors(Tally& tally, bool is_quick) {
  std::vector<std::pair<int64_t, int64_t>> sizes = {{0, 3}, {1, 1}, {9, 8}, {7, 33}, {513, 2}};
  if (!is_quick) sizes.insert(sizes.end(), {{512, 8}, {3, 1000}, {70001, 3}});
  for (const auto& [r, nz] : sizes) compare_prior<T>(tally, r, nz);
}

}  // namespace
}  // namespace lae

int main(int argc, char** argv) {
  const bool quick = is_quick(argc, argv);
  Tally tally;
  lae::compare_likelihoods<float>(tally, quick);
  lae::compare_likelihoods<double>(tally, quick);
  lae::compare_priors<float>(tally, quick);
  lae::compare_priors<double>(tally, quick);
  return tally.report("energy");
}
