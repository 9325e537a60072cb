// What the threads that serve a chain do: sums for the decision, noise, proposals, and the chain's scalars.
#pragma once

#include "../langevin_math.h"
#include "../langevin_ops.h"
#include "quads.h"
#include "reduce.h"

namespace lae {

constexpr int kThreads = 256;  // threads of a block

__device__ inline Sums operator+(Sums a, Sums b) {
  return {a.ratio + b.ratio, a.probe + b.probe};
}

// The sums over a team of kTeam threads, in every thread of it. All threads of the block must call it.
template <int kTeam>
__device__ Sums sum_over_team(Sums s) {
  team_sum<kTeam>(true, s.ratio, s.probe);
  // Shuffles alone do not order memory: the team's reads are done before its lane 0 writes.
  if constexpr (kTeam <= 32) __syncwarp();
  return s;
}

// Four elements of a chain: all that the decision reads.
template <typename T>
struct Group {
  Quad<T> phi, proposal, grad, proposal_grad;
};

template <typename T>
__device__ Sums sums_of(const Group<T>& q, double eta) {
  Sums sums = {0.0, 0.0};
  for (int k = 0; k < 4; ++k) {
    sums.ratio += ratio_element(q.phi.v[k], q.proposal.v[k], q.grad.v[k], q.proposal_grad.v[k], eta);
    sums.probe += finite_probe(q.proposal.v[k], q.proposal_grad.v[k]);
  }
  return sums;
}

// Elements i .. i + 3 of a chain that begins at `row`. Args: TransitionArgs or DecideArgs.
template <typename T, typename Args>
__device__ Group<T> load_group(const Args& a, int64_t row, int64_t i, bool is_wide) {
  const int64_t n = a.n_elements;
  return {load<T>(a.phi + row, i, n, is_wide), load<T>(a.proposal + row, i, n, is_wide),
          load<T>(a.grad + row, i, n, is_wide), load<T>(a.proposal_grad + row, i, n, is_wide)};
}

// What finite_probe sums to.
__device__ inline Sums probe_of(bool is_finite) {
  return {0.0, is_finite ? 0.0 : NAN};
}

// This thread's share of a chain's sums: the groups from element `first` on, n_lanes groups apart. Without
// Metropolis-Hastings only the probe counts: phi and grad are not read, nor a proposal that is known to be finite.
template <typename T, typename Args>
__device__ Sums partial_sums(const Args& a, int64_t row, double eta, int64_t first, int64_t n_lanes, bool is_wide,
                             bool is_known_finite = false) {
  const int64_t n = a.n_elements;
  Sums sums = {0.0, 0.0};
  if (a.mh) {
    for (int64_t i = first; i < n; i += 4 * n_lanes) sums = sums + sums_of(load_group<T>(a, row, i, is_wide), eta);
    return sums;
  }
  bool is_sound = true;
  if (!is_known_finite)
    for (int64_t i = first; i < n; i += 4 * n_lanes) is_sound &= is_finite(load<T>(a.proposal + row, i, n, is_wide));
  for (int64_t i = first; i < n; i += 4 * n_lanes) is_sound &= is_finite(load<T>(a.proposal_grad + row, i, n, is_wide));
  return probe_of(is_sound);
}

template <typename T>
__device__ Quad<T> noise_quad(Stream stream, const T* noise_row, int64_t i, int64_t n, bool is_wide) {
  if (noise_row) return load(noise_row, i, n, is_wide);
  Quad<T> eps;
  normals4(stream.seed, stream.step, stream.chain, static_cast<uint32_t>(i / 4), eps.v);
  return eps;
}

// What a proposal needs of the step size.
template <typename T>
struct Stride {
  T drift, noise_scale;
};

template <typename T>
__device__ Stride<T> stride_of(double eta) {
  return {static_cast<T>(eta), static_cast<T>(sqrt(2.0 * eta))};
}

template <typename T>
__device__ Quad<T> proposal_quad(const Quad<T>& phi, const Quad<T>& grad, Stride<T> stride, const Quad<T>& eps) {
  Quad<T> out;
  for (int k = 0; k < 4; ++k)
    out.v[k] = proposal_element(phi.v[k], grad.v[k], stride.drift, stride.noise_scale, eps.v[k]);
  return out;
}

// The scalars of one chain as they were when the launch began.
struct ChainScalars {
  double potential, proposal_potential, log_step_size, log_u;
  Adaptation adaptation;
};

template <typename T>
__device__ ChainScalars read_scalars(const TransitionArgs<T>& a, int64_t c, uint64_t seed, uint64_t step) {
  const double u = a.uniform ? a.uniform[c] : accept_uniform(seed, step, static_cast<uint32_t>(c));
  const int64_t own = a.n_step_sizes == 1 ? 0 : c;
  const bool adapts = a.adaptation && !a.adapts_jointly();
  return {a.potential[c], a.proposal_potential[c], a.log_step_size[own], log_uniform(u),
          adapts ? load_adaptation(a.adaptation + own * a.adaptation_stride, a.adaptation_stride)
                 : Adaptation{}};  // a rate of 0: the step size stays
}

// The chain's step size from now on; advances the adaptation's state in `s`.
__device__ inline double next_log_step_size(ChainScalars& s, const Decision& d) {
  return adapted_log_step_size(s.log_step_size, acceptance_probability(d.log_alpha), s.adaptation);
}

// Elements i .. i + 3 of the new state, and of the proposal from there (unless it waits for all decisions), which is
// returned.
template <typename T>
__device__ Quad<T> advance_quad(const TransitionArgs<T>& a, int64_t row, int64_t i, bool is_wide, bool is_accepted,
                             const Quad<T>& phi, const Quad<T>& grad, Stride<T> stride, const Quad<T>& eps) {
  const int64_t n = a.n_elements;
  if (is_accepted) {
    store(a.phi + row, i, n, is_wide, phi);
    store(a.grad + row, i, n, is_wide, grad);
  }
  if (a.adapts_jointly()) return {};
  const Quad<T> proposal = proposal_quad(phi, grad, stride, eps);
  store(a.proposal + row, i, n, is_wide, proposal);
  return proposal;
}

// The same for elements that are not in registers.
template <typename T>
__device__ Quad<T> advance(const TransitionArgs<T>& a, int64_t row, bool is_accepted, Stride<T> stride, Stream stream,
                           int64_t i, bool is_wide) {
  const int64_t n = a.n_elements;
  const Quad<T> phi = load<T>(is_accepted ? a.proposal + row : a.phi + row, i, n, is_wide);
  const Quad<T> grad = load<T>(is_accepted ? a.proposal_grad + row : a.grad + row, i, n, is_wide);
  const Quad<T> eps =
      a.adapts_jointly() ? Quad<T>{} : noise_quad(stream, a.noise ? a.noise + row : nullptr, i, n, is_wide);
  return advance_quad(a, row, i, is_wide, is_accepted, phi, grad, stride, eps);
}

template <typename T>
__device__ void write_scalars(const TransitionArgs<T>& a, int64_t c, const ChainScalars& s,
                              const Decision& d, double log_step_size) {
  a.is_accepted[c] = d.is_accepted;
  a.log_alpha[c] = d.log_alpha;
  a.counters[2 * c + kRejected] += !d.is_accepted && !d.is_nonfinite;
  a.counters[2 * c + kNonfinite] += d.is_nonfinite;
  if (a.acceptance) a.acceptance[c] += acceptance_probability(d.log_alpha);
  if (a.known_finite) a.known_finite[c] = false;  // transition_grid knows better
  if (d.is_accepted) a.potential[c] = s.proposal_potential;
  if (a.adaptation && !a.adapts_jointly()) {
    a.log_step_size[c] = log_step_size;
    store_adaptation(s.adaptation, a.adaptation + c * a.adaptation_stride);
  }
}

// Whether this block gets here last: all other blocks have done their reads and writes. One thread asks, when its own
// block has done them.
__device__ inline bool is_last_of_grid(int64_t* rng) {
  if (gridDim.x == 1) return true;  // a fence and an atomic take longer than a short chain's arithmetic
  __threadfence();
  const auto before = atomicAdd(reinterpret_cast<unsigned long long*>(rng + kTicket), 1ull);
  const bool is_last = before % gridDim.x + 1 == gridDim.x;
  if (is_last) __threadfence();  // what follows in this block comes after what all others did before theirs
  return is_last;
}
// The answer is in thread 0.
__device__ inline bool is_last_block(int64_t* rng) {
  __syncthreads();
  return threadIdx.x == 0 && is_last_of_grid(rng);
}
template <typename T>
__device__ void advance_rng(const TransitionArgs<T>& a) {
  a.rng[kStep] += !a.adapts_jointly();  // before a joint adaptation: propose_jointly draws the noise of this step
  a.rng[kTicket] = 0;
}

// Calls f(chain, first element) for all groups of all chains, spread over the grid.
template <typename F>
__device__ void for_groups(int64_t n_chains, int64_t n_elements, F f) {
  const int64_t groups = (n_elements + 3) / 4;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n_chains * groups;
       k += static_cast<int64_t>(gridDim.x) * kThreads)
    f(k / groups, 4 * (k % groups));
}

}  // namespace lae
