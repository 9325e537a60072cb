// CUDA kernels of the energies, and of the selection after a decision: load / reduce / launch over energy_math.h.
//
// One block a row of pixels, four consecutive pixels a thread where rows are aligned. A row's sum depends on its length
// alone, never on timing.

#include "../dense_ops.h"
#include "../energy_ops.h"
#include "launch.h"

namespace lae {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxPairs = 48;  // of one launch of `keep`: its table travels as a kernel argument

struct RowSums {
  double energy, log_scale_derivative;
};

// Sum over the block, in thread 0.
__device__ RowSums block_sum(RowSums s) {
  __shared__ RowSums warps[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) {
    s.energy += __shfl_down_sync(0xFFFFFFFFu, s.energy, offset);
    s.log_scale_derivative += __shfl_down_sync(0xFFFFFFFFu, s.log_scale_derivative, offset);
  }
  __syncthreads();  // the previous row's sums have been read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = s;
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < kWarps; ++w) {
      s.energy += warps[w].energy;
      s.log_scale_derivative += warps[w].log_scale_derivative;
    }
  return s;
}

template <Likelihood kLikelihood, typename T>
__device__ T take(const PixelOf<kLikelihood, T>& pixel, T output, T x, RowSums& sums) {
  const auto p = pixel(output, x);
  sums.energy += static_cast<double>(p.energy);
  if constexpr (kLikelihood != kBernoulli) sums.log_scale_derivative += static_cast<double>(p.log_scale_derivative);
  return static_cast<T>(p.derivative);
}

template <Likelihood kLikelihood, typename T>
__global__ void __launch_bounds__(kThreads) energy_rows(EnergyArgs<T> a, bool is_wide) {
  const PixelScale scale =
      pixel_scale(kLikelihood, kLikelihood == kBernoulli ? 0.0 : static_cast<double>(*a.log_scale));
  const PixelOf<kLikelihood, T> pixel(scale);
  const int64_t n = a.n_pixels;
  for (int64_t r = blockIdx.x; r < a.n_rows; r += gridDim.x) {
    const T *output = a.output + r * n, *x = a.x + r % a.n_images * n;
    T* derivative = a.derivative + r * n;
    RowSums sums = {0.0, 0.0};
    if (is_wide) {
      for (int64_t i = 4 * threadIdx.x; i < n; i += 4 * kThreads) {
        const Quad<T> l = *reinterpret_cast<const Quad<T>*>(output + i);
        const Quad<T> y = *reinterpret_cast<const Quad<T>*>(x + i);
        Quad<T> d;
        for (int k = 0; k < 4; ++k) d.v[k] = take(pixel, l.v[k], y.v[k], sums);
        *reinterpret_cast<Quad<T>*>(derivative + i) = d;
      }
    } else {
      for (int64_t i = threadIdx.x; i < n; i += kThreads) derivative[i] = take(pixel, output[i], x[i], sums);
    }
    sums = block_sum(sums);
    if (threadIdx.x != 0) continue;
    const double size = kLikelihood == kGaussian ? static_cast<double>(n) : 0.0;
    a.energy[r] = sums.energy + size * scale.constant;
    if constexpr (kLikelihood != kBernoulli) a.log_scale_derivative[r] = sums.log_scale_derivative + size * scale.slope;
  }
}

// Pairs of arrays, as `keep` takes them, in a launch's argument.
struct Pairs {
  char* latest[kMaxPairs];
  const char* previous[kMaxPairs];
  int64_t n_bytes[kMaxPairs];
  const bool* is_accepted;
};

// One row of blocks a pair; 16 bytes a thread where both ends are aligned.
__global__ void __launch_bounds__(kThreads) keep_pairs(Pairs pairs) {
  if (*pairs.is_accepted) return;
  char* to = pairs.latest[blockIdx.y];
  const char* from = pairs.previous[blockIdx.y];
  const int64_t n = pairs.n_bytes[blockIdx.y];
  const bool is_wide = is_aligned(to) && is_aligned(from);
  const int64_t wide = is_wide ? n / 16 : 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = first; i < wide; i += stride)
    reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  for (int64_t i = 16 * wide + first; i < n; i += stride) to[i] = from[i];
}

struct Cuda {
  using Guard = DeviceGuard;

  template <typename T>
  static void energy(const EnergyArgs<T>& a) {
    const bool is_wide =
        a.n_pixels % 4 == 0 && is_aligned(a.output) && is_aligned(a.x) && is_aligned(a.derivative);
    const int64_t blocks = a.n_rows < (int64_t{1} << 20) ? a.n_rows : int64_t{1} << 20;
    for_likelihood<T>(a.likelihood, [&](auto likelihood) {
      energy_rows<decltype(likelihood)::value, T>
          <<<static_cast<unsigned>(blocks), kThreads, 0, current_stream()>>>(a, is_wide);
    });
    check_cuda(cudaGetLastError(), "energy");
  }

  static void keep(const KeepArgs& a) {
    for (size_t begin = 0; begin < a.latest.size(); begin += kMaxPairs) {
      const size_t n = a.latest.size() - begin < kMaxPairs ? a.latest.size() - begin : kMaxPairs;
      Pairs pairs = {};
      pairs.is_accepted = a.is_accepted;
      int64_t longest = 0;
      for (size_t i = 0; i < n; ++i) {
        pairs.latest[i] = a.latest[begin + i];
        pairs.previous[i] = a.previous[begin + i];
        pairs.n_bytes[i] = a.n_bytes[begin + i];
        longest = longest < pairs.n_bytes[i] ? pairs.n_bytes[i] : longest;
      }
      const int64_t blocks = (longest + 16 * kThreads - 1) / (16 * kThreads);
      const dim3 grid(static_cast<unsigned>(blocks < 64 ? blocks : 64), static_cast<unsigned>(n));
      keep_pairs<<<grid, kThreads, 0, current_stream()>>>(pairs);
      check_cuda(cudaGetLastError(), "keep");
    }
  }
};

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CUDA, library) {
  library.impl("energy", TORCH_BOX(&lae::EnergyOps<lae::Cuda>::energy));
  library.impl("energy_", TORCH_BOX(&lae::EnergyOps<lae::Cuda>::energy_));
  library.impl("keep", TORCH_BOX(&lae::DenseOps<lae::Cuda>::keep));
}
