// The Langevin ops as torch calls them, written once for every backend: check the arguments, turn them into plain
// pointers, pick the element type, call the backend. A backend is a struct with
//   transition(TransitionArgs<T>), decide(DecideArgs<T>), propose(ProposeArgs<T>), noise(NoiseArgs<T>)
// and a Guard that makes the tensors' device current. Schemas and meaning: lae_fast/ops/langevin.py, ops/philox.py.
#pragma once

#include <optional>
#include <tuple>
#include <type_traits>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "check.h"
#include "langevin_math.h"
#include "tensors.h"

namespace lae {

// C chains of D elements; S step sizes: 1 (shared) or C. Every array is contiguous.

template <typename T>
struct TransitionArgs {
  int64_t n_chains, n_elements, n_step_sizes;
  T *phi, *grad, *proposal;          // [C, D], in and out
  const T* proposal_grad;            // [C, D]
  double* potential;                 // [C], in and out
  const double* proposal_potential;  // [C]
  int64_t* rng;                      // [3]: seed, step, ticket; the step is advanced
  double* log_step_size;             // [S], in and out
  double* adaptation;                // [S, K], in and out, or null: the step sizes stay
  int64_t adaptation_stride;         // K: 2 or 6
  int64_t* counters;                 // [C, 2]: rejected, non-finite; added to
  bool* is_accepted;                 // [C], out
  double* log_alpha;                 // [C], out
  const T* noise;                    // [C, D] or null
  const double* uniform;             // [C] or null
  bool mh;
  double* acceptance;   // [C], added to, or null
  bool* known_finite;   // [C], in and out, or null: whether the proposal is known to be finite

  // One step size for several chains adapts to their mean acceptance: all decisions come before any proposal.
  LAE_HD bool adapts_jointly() const { return adaptation && n_step_sizes == 1 && n_chains > 1; }
};

template <typename T>
struct DecideArgs {
  int64_t n_chains, n_elements, n_step_sizes;
  const T *phi, *proposal, *grad, *proposal_grad;  // [C, D]
  const double *potential, *proposal_potential;    // [C]
  const double* step_size;                         // [S]
  const int64_t* rng;                              // [3]
  const double* uniform;                           // [C] or null
  bool mh;
  bool *is_accepted, *is_nonfinite;                // [C], out
  double* log_alpha;                               // [C], out
};

template <typename T>
struct ProposeArgs {
  int64_t n_chains, n_elements, n_step_sizes;
  const T *phi, *grad;      // [C, D]
  const double* step_size;  // [S]
  const int64_t* rng;       // [3]
  const T* noise;           // [C, D] or null
  T* proposal;              // [C, D], out
  int64_t* next_rng;        // [3], out
};

// What `noise` writes: the 32-bit words, the uniforms made of them, the normals made of those, or (float64, [C, 1]) the
// uniforms of the Metropolis-Hastings decisions.
enum NoiseKind : int64_t { kIntegers = 0, kUniformPairs = 1, kStandardNormals = 2, kAcceptUniforms = 3 };

template <typename T>
struct NoiseArgs {
  int64_t n_chains, n_elements;
  const int64_t* rng;  // [3]
  NoiseKind kind;
  T* out;  // [C, D]
};

template <class Backend>
struct LangevinOps {
  // Calls f(TransitionArgs<T>) with the chains' state, checked; the proposals' energies and totals are left to f.
  template <typename F>
  static void with_state(const Check& check, const Tensor& phi, const Tensor& potential, const Tensor& grad,
                         const Tensor& proposal, const Tensor& rng, const Tensor& log_step_size, const Tensor& counters,
                         const Tensor& is_accepted, const Tensor& log_alpha, const std::optional<Tensor>& adaptation,
                         bool mh, F f) {
    check.state("phi", phi);
    const int64_t n_chains = phi.size(0), n_elements = phi.size(1);
    check.like("grad", grad);
    check.like("proposal", proposal);
    check.array("potential", potential, ScalarType::Double, {n_chains});
    check.array("rng", rng, ScalarType::Long, {3});
    const int64_t n_step_sizes = check.step_sizes("log_step_size", log_step_size);
    check.array("counters", counters, ScalarType::Long, {n_chains, 2});
    check.array("is_accepted", is_accepted, ScalarType::Bool, {n_chains});
    check.array("log_alpha", log_alpha, ScalarType::Double, {n_chains});
    const bool is_dual = adaptation && adaptation->dim() == 2 && adaptation->size(1) == kDualColumns;
    const int64_t n_columns = is_dual ? kDualColumns : 2;
    if (adaptation) check.array("adaptation", *adaptation, ScalarType::Double, {n_step_sizes, n_columns});
    const typename Backend::Guard guard(phi);
    for_type(phi, [&](auto type) {
      using T = decltype(type);
      f(TransitionArgs<T>{n_chains, n_elements, n_step_sizes, pointer<T>(phi), pointer<T>(grad), pointer<T>(proposal),
                          nullptr, pointer<double>(potential), nullptr, pointer<int64_t>(rng),
                          pointer<double>(log_step_size), mh ? pointer<double>(adaptation) : nullptr, n_columns,
                          pointer<int64_t>(counters), pointer<bool>(is_accepted), pointer<double>(log_alpha), nullptr,
                          nullptr, mh, nullptr, nullptr});
    });
  }

  static void transition(Tensor phi, Tensor potential, Tensor grad, Tensor proposal, Tensor rng,
                         Tensor log_step_size, Tensor counters, Tensor is_accepted, Tensor log_alpha,
                         std::optional<Tensor> adaptation, Tensor proposal_potential, Tensor proposal_grad, bool mh,
                         std::optional<Tensor> noise, std::optional<Tensor> uniform, std::optional<Tensor> acceptance,
                         std::optional<Tensor> known_finite) {
    const Check check("transition", phi);
    with_state(check, phi, potential, grad, proposal, rng, log_step_size, counters, is_accepted, log_alpha, adaptation,
               mh, [&](auto args) {
                 using T = std::remove_pointer_t<decltype(args.phi)>;
                 const int64_t n_chains = phi.size(0);
                 check.like("proposal_grad", proposal_grad);
                 check.array("proposal_potential", proposal_potential, ScalarType::Double, {n_chains});
                 if (noise) check.like("noise", *noise);
                 if (uniform) check.array("uniform", *uniform, ScalarType::Double, {n_chains});
                 if (acceptance) check.array("acceptance", *acceptance, ScalarType::Double, {n_chains});
                 if (known_finite) check.array("known_finite", *known_finite, ScalarType::Bool, {n_chains});
                 args.proposal_potential = pointer<double>(proposal_potential);
                 args.proposal_grad = pointer<T>(proposal_grad);
                 args.noise = pointer<T>(noise);
                 args.uniform = pointer<double>(uniform);
                 args.acceptance = pointer<double>(acceptance);
                 args.known_finite = pointer<bool>(known_finite);
                 Backend::transition(args);
               });
  }

  static std::tuple<Tensor, Tensor, Tensor> decide(Tensor phi, Tensor proposal, Tensor potential,
                                                   Tensor proposal_potential, Tensor grad,
                                                   Tensor proposal_grad, Tensor step_size, Tensor rng,
                                                   bool mh, std::optional<Tensor> uniform) {
    const Check check("decide", phi);
    check.state("phi", phi);
    const int64_t n_chains = phi.size(0), n_elements = phi.size(1);
    check.like("proposal", proposal);
    check.like("grad", grad);
    check.like("proposal_grad", proposal_grad);
    check.array("potential", potential, ScalarType::Double, {n_chains});
    check.array("proposal_potential", proposal_potential, ScalarType::Double, {n_chains});
    const int64_t n_step_sizes = check.step_sizes("step_size", step_size);
    check.array("rng", rng, ScalarType::Long, {3});
    if (uniform) check.array("uniform", *uniform, ScalarType::Double, {n_chains});
    const typename Backend::Guard guard(phi);
    Tensor is_accepted = torch::stable::new_empty(phi, {n_chains}, ScalarType::Bool);
    Tensor is_nonfinite = torch::stable::new_empty(phi, {n_chains}, ScalarType::Bool);
    Tensor log_alpha = torch::stable::new_empty(phi, {n_chains}, ScalarType::Double);
    for_type(phi, [&](auto type) {
      using T = decltype(type);
      Backend::decide(DecideArgs<T>{
          n_chains, n_elements, n_step_sizes, pointer<T>(phi), pointer<T>(proposal), pointer<T>(grad),
          pointer<T>(proposal_grad), pointer<double>(potential), pointer<double>(proposal_potential),
          pointer<double>(step_size), pointer<int64_t>(rng), pointer<double>(uniform), mh,
          pointer<bool>(is_accepted), pointer<bool>(is_nonfinite), pointer<double>(log_alpha)});
    });
    return {is_accepted, is_nonfinite, log_alpha};
  }

  static std::tuple<Tensor, Tensor> propose(Tensor phi, Tensor grad, Tensor step_size, Tensor rng,
                                            std::optional<Tensor> noise) {
    const Check check("propose", phi);
    check.state("phi", phi);
    check.like("grad", grad);
    const int64_t n_step_sizes = check.step_sizes("step_size", step_size);
    check.array("rng", rng, ScalarType::Long, {3});
    if (noise) check.like("noise", *noise);
    const typename Backend::Guard guard(phi);
    Tensor proposal = torch::stable::empty_like(phi);
    Tensor next_rng = torch::stable::empty_like(rng);
    for_type(phi, [&](auto type) {
      using T = decltype(type);
      Backend::propose(ProposeArgs<T>{phi.size(0), phi.size(1), n_step_sizes, pointer<T>(phi),
                                      pointer<T>(grad), pointer<double>(step_size), pointer<int64_t>(rng),
                                      pointer<T>(noise), pointer<T>(proposal),
                                      pointer<int64_t>(next_rng)});
    });
    return {proposal, next_rng};
  }

  static void noise(Tensor out, Tensor rng, int64_t kind) {
    const Check check("noise", out);
    STD_TORCH_CHECK(kind >= kIntegers && kind <= kAcceptUniforms, "lae_fast::noise: kind must be 0 to 3");
    STD_TORCH_CHECK(out.dim() == 2, "lae_fast::noise: out must be [C, D]");
    const int64_t n_chains = out.size(0), n_elements = out.size(1);
    if (kind == kIntegers)
      check.array("out", out, ScalarType::Long, {n_chains, n_elements});
    else if (kind == kAcceptUniforms)
      check.array("out", out, ScalarType::Double, {n_chains, 1});
    else
      check.state("out", out);
    check.array("rng", rng, ScalarType::Long, {3});
    const typename Backend::Guard guard(out);
    const auto run = [&](auto type) {
      using T = decltype(type);
      Backend::noise(NoiseArgs<T>{n_chains, n_elements, pointer<int64_t>(rng), static_cast<NoiseKind>(kind),
                                  pointer<T>(out)});
    };
    if (kind == kIntegers)
      run(int64_t{});
    else
      for_type(out, run);
  }

  static void register_with(torch::stable::detail::StableLibrary& library) {
    library.impl("transition", TORCH_BOX(&LangevinOps::transition));
    library.impl("decide", TORCH_BOX(&LangevinOps::decide));
    library.impl("propose", TORCH_BOX(&LangevinOps::propose));
    library.impl("noise", TORCH_BOX(&LangevinOps::noise));
  }
};

}  // namespace lae
