// CPU kernels between the matrix products of a fully connected network: layer normalization with ReLU, forward and
// backward, row by row, its parameters' gradients, and `keep`, which restores rows after a rejected proposal.
//
// Compiles alone, with TORCH the folder of the torch package:
// g++ -std=c++20 -O3 -ffp-contract=off -fPIC -fvisibility=hidden -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -c csrc/cpu/dense.cpp -o /tmp/dense.o
//
// Sums over a row run in kLanes float64 lanes, sums over rows in chunks of kRows: neither the vector width nor the
// number of threads ever changes a bit.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../dense_ops.h"
#include "simd.h"

namespace lae {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kRows = 32;                // rows in one unit of parallel work
constexpr int64_t kCopy = int64_t{1} << 18;  // bytes in one unit of parallel copying

// The sum over i < n of f(i), in float64.
template <typename F>
LAE_INLINE double lane_sum(int64_t n, const F& f) {
  double lanes[kLanes] = {};
  for_lanes<kLanes>(n, [&](int64_t i, int m) LAE_SIMD {
    for (int l = 0; l < m; ++l) lanes[l] += static_cast<double>(f(i + l));
  });
  return total(lanes);
}

template <typename T>
LAE_INLINE void forward_row(T* __restrict__ y, const T* __restrict__ weight, const T* __restrict__ bias, int64_t d,
                            double eps, T* __restrict__ out, T* rstd_out) {
  const double size = static_cast<double>(d);
  const T mean = static_cast<T>(lane_sum(d, [&](int64_t i) LAE_SIMD { return y[i]; }) / size);
  const double variance = lane_sum(d, [&](int64_t i) LAE_SIMD { return (y[i] - mean) * (y[i] - mean); }) / size;
  const T rstd = static_cast<T>(1.0 / std::sqrt(variance + eps));
  for (int64_t i = 0; i < d; ++i) {
    const T normalized = (y[i] - mean) * rstd, value = normalized * weight[i] + bias[i];
    y[i] = normalized;
    out[i] = value < T(0) ? T(0) : value;  // a NaN stays a NaN
  }
  *rstd_out = rstd;
}

// The gradient of y from grad, the gradient of `out`.
template <typename T>
LAE_INLINE void backward_row(const T* __restrict__ grad, const T* __restrict__ out, const T* __restrict__ normalized,
                             T rstd, const T* __restrict__ weight, int64_t d, T* __restrict__ y_grad) {
  for (int64_t i = 0; i < d; ++i) y_grad[i] = (out[i] <= T(0) ? T(0) : grad[i]) * weight[i];
  const double size = static_cast<double>(d);
  const T mean = static_cast<T>(lane_sum(d, [&](int64_t i) LAE_SIMD { return y_grad[i]; }) / size);
  const T slope = static_cast<T>(lane_sum(d, [&](int64_t i) LAE_SIMD { return y_grad[i] * normalized[i]; }) / size);
  for (int64_t i = 0; i < d; ++i) y_grad[i] = rstd * (y_grad[i] - mean - normalized[i] * slope);
}

// Adds one row to its chunk's sums, [d] each.
template <typename T>
LAE_INLINE void add_row(const T* __restrict__ grad, const T* __restrict__ out, const T* __restrict__ normalized,
                        const T* __restrict__ y_grad, int64_t d, T* __restrict__ weight_sum, T* __restrict__ bias_sum,
                        T* __restrict__ y_sum) {
  for (int64_t i = 0; i < d; ++i) {
    const T g = out[i] <= T(0) ? T(0) : grad[i];
    weight_sum[i] += g * normalized[i];
    bias_sum[i] += g;
    y_sum[i] += y_grad[i];
  }
}

struct Cpu {
  using Guard = NoGuard;

  template <typename T>
  static void norm_relu(const NormReluArgs<T>& a) {
    torch::stable::parallel_for(0, a.n, kRows, [&](int64_t first, int64_t last) {
      with_simd([&]() LAE_SIMD {
        for (int64_t r = first; r < last; ++r)
          forward_row(a.y + r * a.d, a.weight, a.bias, a.d, a.eps, a.out + r * a.d, a.rstd + r);
      });
    });
  }

  template <typename T>
  static void norm_relu_backward(const NormReluBackwardArgs<T>& a) {
    torch::stable::parallel_for(0, a.n, kRows, [&](int64_t first, int64_t last) {
      with_simd([&]() LAE_SIMD {
        for (int64_t r = first; r < last; ++r) {
          const int64_t row = r * a.d;
          backward_row(a.grad + row, a.out + row, a.normalized + row, a.rstd[r], a.weight, a.d, a.y_grad + row);
        }
      });
    });
  }

  template <typename T>
  static void norm_relu_sums(const NormReluSumsArgs<T>& a) {
    const int64_t chunks = (a.n + kRows - 1) / kRows, size = 3 * a.d;
    std::vector<T> partial(chunks * size);
    torch::stable::parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      with_simd([&]() LAE_SIMD {
        for (int64_t c = first; c < last; ++c) {
          T* sums = partial.data() + c * size;
          const int64_t end = (c + 1) * kRows < a.n ? (c + 1) * kRows : a.n;
          for (int64_t r = c * kRows; r < end; ++r) {
            const int64_t row = r * a.d;
            add_row(a.grad + row, a.out + row, a.normalized + row, a.y_grad + row, a.d, sums, sums + a.d,
                    sums + 2 * a.d);
          }
        }
      });
    });
    std::fill_n(a.sums, size, T(0));
    with_simd([&]() LAE_SIMD {
      for (int64_t c = 0; c < chunks; ++c)
        for (int64_t i = 0; i < size; ++i) a.sums[i] += partial[c * size + i];
    });
  }

  static void keep(const KeepArgs& a) {
    for (size_t i = 0; i < a.latest.size(); ++i) {
      // One row of many bytes is copied in parts, many rows are copied a few at a time.
      const int64_t row = a.row_bytes[i], part = a.n_rows > 1 || row < kCopy ? row : kCopy;
      const int64_t parts = (row + part - 1) / part, grain = part < kCopy ? kCopy / part : 1;
      torch::stable::parallel_for(0, a.n_rows * parts, grain, [&](int64_t first, int64_t last) {
        for (int64_t p = first; p < last; ++p) {
          if (a.is_accepted[p / parts]) continue;
          const int64_t begin = p % parts * part, size = begin + part < row ? part : row - begin;
          const int64_t offset = p / parts * row + begin;
          std::memcpy(a.latest[i] + offset, a.previous[i] + offset, size);
        }
      });
    }
  }
};

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CPU, library) {
  lae::DenseOps<lae::Cpu>::register_with(library);
}
