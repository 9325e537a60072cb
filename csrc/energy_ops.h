// The energy ops as torch calls them, written once for every backend: check the arguments, turn them into plain
// pointers, call the backend. A backend is a struct with energy(EnergyArgs<T>) and a Guard; that of a GPU has
// add_prior(PriorArgs<T>), too. Schemas and meaning: lae_fast/ops/energies.py.
#pragma once

#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "energy_math.h"
#include "tensors.h"

namespace lae {

template <typename T>
struct EnergyArgs {
  int64_t n_rows, n_images, n_pixels;
  Likelihood likelihood;
  const T* output;                // [R, nx]
  const T* x;                     // [n, nx]; row r is compared with image r % n
  const T* log_scale;             // [] or null
  double* energy;                 // [R], out
  T* derivative;                  // [R, nx], out; may be output
  double* log_scale_derivative;   // [R], out, or null
};

template <typename T>
struct PriorArgs {
  int64_t n_rows, nz;
  double* energy;   // [R], in, out
  T* z_grad;        // [R, nz], in, out
  const T* z;       // [R, nz]
  double constant;  // of a row
};

// The sums over the pixels of one row.
struct RowSums {
  double energy, log_scale_derivative;
};

// Computes one pixel in the type that its likelihood needs. All pixels of a launch share the scale.
template <Likelihood kLikelihood, typename T>
struct PixelOf {
  PixelScale scale;
  T inverse, inverse_square;

  LAE_HD explicit PixelOf(const PixelScale& s)
      : scale(s), inverse(static_cast<T>(s.inverse)), inverse_square(static_cast<T>(s.inverse * s.inverse)) {}

  template <typename F>
  LAE_HD auto operator()(F fma, T output, T x) const {
    if constexpr (kLikelihood == kBernoulli)
      return bernoulli_pixel(fma, output, x);
    else if constexpr (kLikelihood == kGaussian)
      return gaussian_pixel(output, x, inverse, inverse_square);
    else
      return logistic_pixel(static_cast<double>(output), static_cast<double>(x), scale);
  }
};

// Calls f with the likelihood as a std::integral_constant: the compiler knows it from here on.
template <typename F>
void for_likelihood(Likelihood likelihood, F f) {
  switch (likelihood) {
    case kBernoulli: return f(std::integral_constant<Likelihood, kBernoulli>{});
    case kGaussian: return f(std::integral_constant<Likelihood, kGaussian>{});
    case kLogistic: return f(std::integral_constant<Likelihood, kLogistic>{});
  }
}

template <class Backend>
struct EnergyOps {
  // Returns the energies [R] and their derivatives by log_scale [R or 0]. `derivative` may be `output` itself.
  static std::tuple<Tensor, Tensor> into(const char* op, Tensor output, Tensor x, int64_t kind,
                                         std::optional<Tensor> log_scale, Tensor derivative) {
    const Check check(op, output);
    check.state("output", output);
    const int64_t n_rows = output.size(0), n_pixels = output.size(1);
    STD_TORCH_CHECK(kind >= kBernoulli && kind <= kLogistic, "lae_fast::", op, ": kind must be 0 to 2");
    STD_TORCH_CHECK((kind == kBernoulli) == !log_scale, "lae_fast::", op,
                    ": log_scale belongs to the Gaussian and logistic likelihoods, and only there");
    STD_TORCH_CHECK(x.dim() == 2, "lae_fast::", op, ": x must be [n, nx]");
    const int64_t n_images = x.size(0);
    check.array("x", x, output.scalar_type(), {n_images, n_pixels});
    STD_TORCH_CHECK(n_images > 0 ? n_rows % n_images == 0 : n_rows == 0, "lae_fast::", op,
                    ": the rows of output must be a multiple of those of x");
    if (log_scale) check.array("log_scale", *log_scale, output.scalar_type(), {});
    Tensor energy = torch::stable::new_empty(output, {n_rows}, ScalarType::Double);
    Tensor slope = torch::stable::new_empty(output, {log_scale ? n_rows : 0}, ScalarType::Double);
    if (n_rows == 0) return {energy, slope};
    for_type(output, [&](auto type) {
      using T = decltype(type);
      Backend::energy(EnergyArgs<T>{n_rows, n_images, n_pixels, static_cast<Likelihood>(kind),
                                    pointer<const T>(output), pointer<const T>(x), pointer<const T>(log_scale),
                                    pointer<double>(energy), pointer<T>(derivative),
                                    log_scale ? pointer<double>(slope) : nullptr});
    });
    return {energy, slope};
  }

  static std::tuple<Tensor, Tensor, Tensor> energy(Tensor output, Tensor x, int64_t kind,
                                                   std::optional<Tensor> log_scale) {
    const typename Backend::Guard guard(output);
    Tensor derivative = torch::stable::empty_like(output);
    const auto [energy, slope] = into("energy", output, x, kind, log_scale, derivative);
    return {energy, derivative, slope};
  }

  static std::tuple<Tensor, Tensor> energy_(Tensor output, Tensor x, int64_t kind,
                                            std::optional<Tensor> log_scale) {
    const typename Backend::Guard guard(output);
    return into("energy_", output, x, kind, log_scale, output);
  }

  static void register_with(torch::stable::detail::StableLibrary& library) {
    library.impl("energy", TORCH_BOX(&EnergyOps::energy));
    library.impl("energy_", TORCH_BOX(&EnergyOps::energy_));
  }
};

// On a CPU plain PyTorch serves: its sums have an order of their own.
template <class Backend>
void add_prior_(Tensor energy, Tensor z_grad, Tensor z) {
  const Check check("add_prior_", z);
  check.state("z", z);
  check.like("z_grad", z_grad);
  const int64_t n_rows = z.size(0), nz = z.size(1);
  check.array("energy", energy, ScalarType::Double, {n_rows});
  const typename Backend::Guard guard(z);
  const double constant = nz * 0.91893853320467274178;  // log(2 pi) / 2
  for_type(z, [&](auto type) {
    using T = decltype(type);
    Backend::add_prior(
        PriorArgs<T>{n_rows, nz, pointer<double>(energy), pointer<T>(z_grad), pointer<const T>(z), constant});
  });
}

}  // namespace lae
