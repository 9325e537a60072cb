// CUDA kernels of the energies: load / reduce / launch over energy_math.h.
//
// Compiles alone, with TORCH the folder of the torch package:
// nvcc -std=c++20 -O3 --fmad=false -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -arch=sm_90 -Xcompiler -fPIC -c csrc/cuda/energy.cu -o /tmp/energy.o
//
// One block serves one row of pixels; if there are very many rows, half a warp does: of the 196 quads of an MNIST image
// 16 lanes take 12.25 rounds of 13, and 32 lanes 6.1 of 7. A thread loads four consecutive pixels at once if rows are
// aligned. The order of a sum depends on the shape alone, never on timing.

#include "../energy_ops.h"
#include "launch.h"
#include "quads.h"
#include "reduce.h"

namespace lae {
namespace {

constexpr int kThreads = 256;
constexpr int kFewLanes = 16;
constexpr int64_t kManyRows = 8192;  // from here on, so few lanes for each row fill the largest cards
constexpr int kWarps = kThreads / 32;

template <Likelihood kLikelihood, typename T>
__device__ T take(const PixelOf<kLikelihood, T>& pixel, T output, T x, RowSums& sums) {
  const auto p = pixel(Fma{}, output, x);
  sums.energy += static_cast<double>(p.energy);
  if constexpr (kLikelihood != kBernoulli) sums.log_scale_derivative += static_cast<double>(p.log_scale_derivative);
  return static_cast<T>(p.derivative);
}

template <Likelihood kLikelihood, typename T, int kTeam>
__global__ void __launch_bounds__(kThreads) energy_rows(EnergyArgs<T> a, bool is_wide) {
  const PixelScale scale =
      pixel_scale(kLikelihood, kLikelihood == kBernoulli ? 0.0 : static_cast<double>(*a.log_scale));
  const PixelOf<kLikelihood, T> pixel(scale);
  const int64_t n = a.n_pixels;
  constexpr int kTeams = kThreads / kTeam;
  const int64_t lane = threadIdx.x % kTeam;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kTeams; first < a.n_rows;
       first += static_cast<int64_t>(gridDim.x) * kTeams) {
    const int64_t r = first + threadIdx.x / kTeam;
    const T *output = a.output + r * n, *x = a.x + r % a.n_images * n;
    T* derivative = a.derivative + r * n;
    RowSums sums = {0.0, 0.0};
    if (kTeams > 1 && r >= a.n_rows) {
      // No row is left for this team, which still adds up with the others of its warp.
    } else if (is_wide) {
      for (int64_t i = 4 * lane; i < n; i += 4 * kTeam) {
        const Quad<T> l = *reinterpret_cast<const Quad<T>*>(output + i);
        const Quad<T> y = *reinterpret_cast<const Quad<T>*>(x + i);
        Quad<T> d;
        for (int k = 0; k < 4; ++k) d.v[k] = take(pixel, l.v[k], y.v[k], sums);
        *reinterpret_cast<Quad<T>*>(derivative + i) = d;
      }
    } else {
      for (int64_t i = lane; i < n; i += kTeam) derivative[i] = take(pixel, output[i], x[i], sums);
    }
    if constexpr (kLikelihood == kBernoulli)
      team_sum<kTeam>(lane == 0, sums.energy);
    else
      team_sum<kTeam>(lane == 0, sums.energy, sums.log_scale_derivative);
    if (lane != 0 || (kTeams > 1 && r >= a.n_rows)) continue;
    const double size = kLikelihood == kGaussian ? static_cast<double>(n) : 0.0;
    a.energy[r] = sums.energy + size * scale.constant;
    if constexpr (kLikelihood != kBernoulli) a.log_scale_derivative[r] = sums.log_scale_derivative + size * scale.slope;
  }
}

// One warp serves one row.
template <typename T>
__global__ void __launch_bounds__(kThreads) add_prior_rows(PriorArgs<T> a) {
  const int64_t lane = threadIdx.x % 32;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; r < a.n_rows;
       r += static_cast<int64_t>(gridDim.x) * kWarps) {
    double squares = 0.0;
    for (int64_t i = r * a.nz + lane; i < (r + 1) * a.nz; i += 32) {
      const T z = a.z[i];
      a.z_grad[i] += z;
      squares += static_cast<double>(z * z);
    }
    warp_sum(squares);
    if (lane == 0) a.energy[r] += 0.5 * squares + a.constant;
  }
}

struct Cuda {
  using Guard = DeviceGuard;

  template <Likelihood kLikelihood, typename T, int kTeam>
  static void energy_by_teams(const EnergyArgs<T>& a, bool is_wide) {
    constexpr int64_t kTeams = kThreads / kTeam, kMost = int64_t{1} << 16;
    const int64_t blocks = (a.n_rows + kTeams - 1) / kTeams;
    launch("energy", {static_cast<unsigned>(blocks < kMost ? blocks : kMost), kThreads},
           energy_rows<kLikelihood, T, kTeam>, a, is_wide);
  }

  template <typename T>
  static void energy(const EnergyArgs<T>& a) {
    const bool is_wide =
        a.n_pixels % 4 == 0 && is_aligned(a.output) && is_aligned(a.x) && is_aligned(a.derivative);
    for_likelihood(a.likelihood, [&](auto likelihood) {
      if (a.n_rows < kManyRows)
        energy_by_teams<decltype(likelihood)::value, T, kThreads>(a, is_wide);
      else
        energy_by_teams<decltype(likelihood)::value, T, kFewLanes>(a, is_wide);
    });
  }

  template <typename T>
  static void add_prior(const PriorArgs<T>& a) {
    constexpr int64_t kMost = int64_t{1} << 16;
    const int64_t blocks = (a.n_rows + kWarps - 1) / kWarps;
    if (blocks > 0)
      launch("add_prior_", {static_cast<unsigned>(blocks < kMost ? blocks : kMost), kThreads}, add_prior_rows<T>, a);
  }
};

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CUDA, library) {
  lae::EnergyOps<lae::Cuda>::register_with(library);
  library.impl("add_prior_", TORCH_BOX(&lae::add_prior_<lae::Cuda>));
}
