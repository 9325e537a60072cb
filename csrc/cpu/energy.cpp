// CPU kernel of the energies: one pass over the decoder's output, row by row.
//
// Compiles alone, with TORCH the folder of the torch package:
// g++ -std=c++20 -O3 -ffp-contract=off -fPIC -fvisibility=hidden -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -c csrc/cpu/energy.cpp -o /tmp/energy.o
//
// Pixels are processed in tiles that stay in the first-level cache, and summed in kLanes interleaved float64 lanes:
// neither the vector width nor the number of threads ever changes a bit.

#include <atomic>

#include "../energy_ops.h"
#include "simd.h"

namespace lae {
namespace {

constexpr int64_t kTile = 256;  // pixels
constexpr int kLanes = 16;
constexpr int64_t kGrain = 16;  // fewest rows that are worth a thread

template <typename V>
LAE_INLINE void add_tile(const V* __restrict__ values, int64_t n, double* __restrict__ lanes) {
  for_lanes<kLanes>(n, [&](int64_t i, int m) LAE_SIMD {
    for (int l = 0; l < m; ++l) lanes[l] += static_cast<double>(values[i + l]);
  });
}

template <typename F, Likelihood kLikelihood, typename T>
LAE_INLINE RowSums row_body(F fma, const PixelOf<kLikelihood, T>& pixel, const T* output, const T* __restrict__ x,
                            int64_t n, T* derivative) {
  using V = decltype(pixel(fma, T{}, T{}).energy);
  double energies[kLanes] = {}, slopes[kLanes] = {};
  for (int64_t begin = 0; begin < n; begin += kTile) {
    const int64_t m = n - begin < kTile ? n - begin : kTile;
    V energy[kTile], slope[kTile], d[kTile];
    for (int64_t i = 0; i < m; ++i) {
      const auto p = pixel(fma, output[begin + i], x[begin + i]);
      energy[i] = p.energy;
      slope[i] = p.log_scale_derivative;
      d[i] = p.derivative;
    }
    for (int64_t i = 0; i < m; ++i) derivative[begin + i] = static_cast<T>(d[i]);  // only now: it may be output
    add_tile(energy, m, energies);
    if constexpr (kLikelihood != kBernoulli) add_tile(slope, m, slopes);
  }
  const double constants = static_cast<double>(n);
  return {total(energies) + (kLikelihood == kGaussian ? constants * pixel.scale.constant : 0.0),
          total(slopes) + (kLikelihood == kGaussian ? constants * pixel.scale.slope : 0.0)};
}

template <typename T>
LAE_INLINE bool all_in_unit_range(const T* __restrict__ x, int64_t n) {
  int outside = 0;
  for (int64_t i = 0; i < n; ++i) outside |= !(x[i] >= T(0) && x[i] <= T(1));
  return !outside;
}

struct Cpu {
  using Guard = NoGuard;

  template <typename T>
  static void energy(const EnergyArgs<T>& a) {
    for_likelihood(a.likelihood, [&](auto likelihood) {
      constexpr Likelihood kLikelihood = decltype(likelihood)::value;
      const PixelOf<kLikelihood, T> pixel(
          pixel_scale(kLikelihood, a.log_scale ? static_cast<double>(*a.log_scale) : 0.0));
      torch::stable::parallel_for(0, a.n_rows, kGrain, [&](int64_t first, int64_t last) {
        with_simd([&](auto fma) LAE_SIMD {
          for (int64_t r = first; r < last; ++r) {
            const int64_t row = r * a.n_pixels, image = r % a.n_images * a.n_pixels;
            const RowSums sums =
                row_body(fma, pixel, a.output + row, a.x + image, a.n_pixels, a.derivative + row);
            a.energy[r] = sums.energy;
            if constexpr (kLikelihood != kBernoulli) a.log_scale_derivative[r] = sums.log_scale_derivative;
          }
        });
      });
    });
  }
};

// Whether all of x [n, nx] lies in [0, 1]; a NaN does not.
bool in_unit_range(Tensor x) {
  Check("in_unit_range", x).state("x", x);
  std::atomic<bool> all = true;
  for_type(x, [&](auto type) {
    const auto* values = pointer<const decltype(type)>(x);
    torch::stable::parallel_for(0, x.numel(), 1 << 16, [&](int64_t first, int64_t last) {
      bool here = true;
      with_simd([&]() LAE_SIMD { here = all_in_unit_range(values + first, last - first); });
      if (!here) all = false;
    });
  });
  return all;
}

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CPU, library) {
  lae::EnergyOps<lae::Cpu>::register_with(library);
  library.impl("in_unit_range", TORCH_BOX(&lae::in_unit_range));  // here alone: the host would wait for a GPU
}
