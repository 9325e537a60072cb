// Compares Adam's kernels with float64 loops on the host, at ragged sizes. build.sh builds it.

#include "../../csrc/cuda/adam.cu"
#include "arrays.h"

namespace lae {
namespace {

// n_params parameters, whose sizes repeat; each of them has taken another number of steps.
template <typename T>
void compare_adam(Tally& tally, const std::vector<int64_t>& sizes, int64_t n_params, int64_t offset) {
  constexpr double kRounding = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52, kBeta1 = 0.9, kBeta2 = 0.999, kEps = 1e-8;
  tally.name("adam %s, %lld parameters, offset %lld", sizeof(T) == 4 ? "float32" : "float64", (long long)n_params,
             (long long)offset);
  std::mt19937_64 engine(n_params + offset);
  std::normal_distribution<double> normal;
  std::vector<std::unique_ptr<Array<T>>> values, grads, means, squares;
  std::vector<std::unique_ptr<Array<float>>> steps;
  Array<float> lr(1);
  lr.host[0] = 1e-3f;
  lr.upload();
  AdamArgs<T> args{{}, {}, {}, {}, {}, {}, lr.device(), kBeta1, kBeta2, kEps};
  for (int64_t p = 0; p < n_params; ++p) {
    const int64_t n = sizes[p % sizes.size()];
    for (auto* arrays : {&values, &grads, &means, &squares}) {
      arrays->push_back(std::make_unique<Array<T>>(n, arrays == &squares ? 0 : offset));
      for (auto& v : arrays->back()->host) {
        const double x = normal(engine);
        v = static_cast<T>(arrays == &squares ? x * x : x);
      }
    }
    if (n > 1) grads[p]->host[1] = NAN;
    if (n > 2) grads[p]->host[2] = means[p]->host[2] = squares[p]->host[2] = 0;
    steps.push_back(std::make_unique<Array<float>>(1));
    const int taken[] = {0, 1, 12, 3000};
    steps[p]->host[0] = static_cast<float>(taken[p % 4]);
    for (auto* arrays : {&values, &grads, &means, &squares}) arrays->back()->upload();
    steps[p]->upload();
    args.params.push_back(values[p]->device());
    args.grads.push_back(grads[p]->device());
    args.exp_avgs.push_back(means[p]->device());
    args.exp_avg_sqs.push_back(squares[p]->device());
    args.steps.push_back(steps[p]->device());
    args.sizes.push_back(n);
  }
  Cuda::adam(args);
  check(cudaDeviceSynchronize(), tally.label);
  const double beta1 = static_cast<T>(kBeta1), beta2 = static_cast<T>(kBeta2);  // the numbers that the kernel has
  for (int64_t p = 0; p < n_params; ++p) {
    const int64_t n = args.sizes[p];
    const double t = steps[p]->host[0] += 1;
    const double power1 = std::pow(beta1, t), power2 = std::pow(beta2, t);
    const double step_size = lr.host[0] / (1 - power1), root = std::sqrt(1 - power2);
    // Four roundings of the formula's numbers; and a power is exact to two, of which 1 - power is a small part.
    const double own = kRounding * (4 + 2 * power1 / (1 - power1) + power2 / (1 - power2));
    std::vector<double> value_bounds(n), mean_bounds(n), square_bounds(n);
    for (int64_t i = 0; i < n; ++i) {
      const double grad = grads[p]->host[i], old = values[p]->host[i];
      const double kept = beta1 * means[p]->host[i], added = (1 - beta1) * grad, mean = kept + added;
      const double square = beta2 * squares[p]->host[i] + (1 - beta2) * grad * grad;
      const double denominator = std::sqrt(square) / root + kEps, change = step_size * mean / denominator;
      mean_bounds[i] = kRounding * (std::abs(kept) + std::abs(added));
      square_bounds[i] = 2 * kRounding * square;
      value_bounds[i] = kRounding * std::abs(old) + own * std::abs(change) + step_size * mean_bounds[i] / denominator;
      values[p]->host[i] = static_cast<T>(old - change);
      means[p]->host[i] = static_cast<T>(mean);
      squares[p]->host[i] = static_cast<T>(square);
    }
    values[p]->compare(tally, "parameter", [&](int64_t i) { return value_bounds[i]; });
    means[p]->compare(tally, "mean", [&](int64_t i) { return mean_bounds[i]; });
    squares[p]->compare(tally, "square", [&](int64_t i) { return square_bounds[i]; });
    steps[p]->compare(tally, "step");
  }
}

template <typename T>
void compare_all(Tally& tally, bool is_quick) {
  std::vector<int64_t> sizes = {1, 0, 3, 4, 8, 1023, 1024, 1025, 2050, 0};
  if (!is_quick) sizes.push_back(70001);
  for (int64_t n_params : is_quick ? std::vector<int64_t>{1, 65} : std::vector<int64_t>{0, 1, 64, 130})
    for (int64_t offset : {0, 1}) compare_adam<T>(tally, sizes, n_params, offset);
}

}  // namespace
}  // namespace lae

int main(int argc, char** argv) {
  Tally tally;
  lae::compare_all<float>(tally, is_quick(argc, argv));
  lae::compare_all<double>(tally, is_quick(argc, argv));
  return tally.report("adam");
}
