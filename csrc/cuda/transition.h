// Kernels of a whole transition: decide, accept or reject, adapt the step size, and propose anew.
#pragma once

#include <cooperative_groups.h>

#include "chain.h"

namespace lae {

// One team serves one chain. A thread's first group, most often its only one, stays in registers, and the noise of that
// group is drawn while the sums are on their way.
template <typename T, int kTeam, int kBlock>
__global__ void __launch_bounds__(kBlock) transition_rows(TransitionArgs<T> a, bool is_wide) {
  const int64_t chain = static_cast<int64_t>(blockIdx.x) * (kBlock / kTeam) + threadIdx.x / kTeam;
  const bool is_real = chain < a.n_chains;  // the last block may hold idle teams: they only take part in the sums
  const int64_t c = is_real ? chain : 0;
  const int64_t first = 4 * (threadIdx.x % kTeam), others = first + 4 * kTeam, row = c * a.n_elements;
  const bool has_group = is_real && first < a.n_elements;
  const Group<T> own = has_group ? load_group<T>(a, row, first, is_wide) : Group<T>{};
  const Stream stream = {static_cast<uint64_t>(a.rng[kSeed]), static_cast<uint64_t>(a.rng[kStep]),
                         static_cast<uint32_t>(c)};
  ChainScalars s = is_real ? read_scalars(a, c, stream.seed, stream.step) : ChainScalars{};
  const Quad<T> eps = has_group && !a.adapts_jointly()
                          ? noise_quad(stream, a.noise ? a.noise + row : nullptr, first, a.n_elements, is_wide)
                          : Quad<T>{};
  const double eta = exp(s.log_step_size);
  Sums sums = has_group ? sums_of(own, eta) : Sums{0.0, 0.0};
  if (is_real) sums = sums + partial_sums<T>(a, row, eta, others, kTeam, is_wide);
  sums = sum_over_team<kTeam>(sums);
  if (is_real) {
    const Decision d = metropolis(s.potential, s.proposal_potential, sums, a.mh, s.log_u);
    const double log_step_size = next_log_step_size(s, d);
    const Stride<T> stride = stride_of<T>(exp(log_step_size));
    if (has_group)
      advance_quad(a, row, first, is_wide, d.is_accepted, select(d.is_accepted, own.proposal, own.phi),
                   select(d.is_accepted, own.proposal_grad, own.grad), stride, eps);
    for (int64_t i = others; i < a.n_elements; i += 4 * kTeam)
      advance(a, row, d.is_accepted, stride, stream, i, is_wide);
    if (first == 0) write_scalars(a, c, s, d, log_step_size);
  }
  if (is_last_block(a.rng)) advance_rng(a);
}

template <typename T>
__device__ RatioLine line_of(const Group<T>& q, bool mh) {
  RatioLine line = {0.0, 0.0};
  if (mh)
    for (int k = 0; k < 4; ++k) add_element(line, q.phi.v[k], q.proposal.v[k], q.grad.v[k], q.proposal_grad.v[k]);
  if (!(is_finite(q.proposal) && is_finite(q.proposal_grad))) line.moved = NAN;
  return line;
}

// One block serves one chain that gives each of kOwners threads at most one group, which stays in registers. One more
// warp owns nothing: it does all that is in double precision and the same for the whole chain (exp, log, sqrt, the
// decision), while the owners draw their noise.
template <typename T, int kOwners>
__global__ void __launch_bounds__(kOwners + 32) transition_few(TransitionArgs<T> a, bool is_wide) {
  struct Verdict {
    bool is_accepted;
    Stride<T> stride;
  };
  __shared__ RatioLine lines[kOwners];
  __shared__ Verdict verdict;
  const int64_t c = blockIdx.x, row = c * a.n_elements, first = 4 * threadIdx.x;
  const bool decides = threadIdx.x >= kOwners, is_owner = first < a.n_elements;
  const int lane = threadIdx.x % 32;
  const Stream stream = {static_cast<uint64_t>(a.rng[kSeed]), static_cast<uint64_t>(a.rng[kStep]),
                         static_cast<uint32_t>(c)};
  Group<T> own = {};
  Quad<T> eps = {};
  ChainScalars s = {};
  Decision d = {};
  double eta = 0.0, log_step_size = 0.0;
  if (decides) {
    s = read_scalars(a, c, stream.seed, stream.step);
    eta = exp(s.log_step_size);
  } else {
    if (is_owner) own = load_group<T>(a, row, first, is_wide);
    lines[threadIdx.x] = line_of(own, a.mh);
  }
  __syncthreads();
  if (decides) {
    RatioLine line = {0.0, 0.0};
    for (int k = lane; k < kOwners; k += 32) line = {line.moved + lines[k].moved, line.pulled + lines[k].pulled};
    warp_sum(line.moved, line.pulled);
    const Sums sums = a.mh ? Sums{2.0 * line.moved + eta * line.pulled, 0.0} : Sums{0.0, line.moved};
    d = metropolis(s.potential, s.proposal_potential, sums, a.mh, s.log_u);
    log_step_size = next_log_step_size(s, d);
    if (log_step_size != s.log_step_size) eta = exp(log_step_size);
    if (lane == 0) verdict = {d.is_accepted, stride_of<T>(eta)};
  } else if (is_owner && !a.adapts_jointly()) {
    eps = noise_quad(stream, a.noise ? a.noise + row : nullptr, first, a.n_elements, is_wide);
  }
  __syncthreads();
  if (decides) {
    if (lane != 0) return;
    write_scalars(a, c, s, d, log_step_size);
    if (is_last_of_grid(a.rng)) advance_rng(a);  // every thread of this block has read the rng, and waited since
  } else if (is_owner) {
    const bool is_accepted = verdict.is_accepted;
    advance_quad(a, row, first, is_wide, is_accepted, select(is_accepted, own.proposal, own.phi),
                 select(is_accepted, own.proposal_grad, own.grad), verdict.stride, eps);
  }
}

// What a block knows of one chain: the sums over its share of the elements, and then whether the next proposal is finite
// there (probe: 0 or NaN).
struct Share {
  Sums sums, next;
};

// The whole grid serves each of a few long chains; all blocks are resident (cooperative launch).
// shares: [C, gridDim.x]. The scalars of the chains do not change before all blocks have finished.
// The second pass over the elements runs backwards: what the first one has read last is still in the cache.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)  // 4 blocks on a multiprocessor: only the loads in flight count
    transition_grid(TransitionArgs<T> a, Share* shares, bool is_wide) {
  const uint64_t seed = a.rng[kSeed], step = a.rng[kStep];
  const int64_t first = 4 * (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x);
  const int64_t n_lanes = static_cast<int64_t>(gridDim.x) * kThreads;
  const bool records = a.known_finite && !a.mh;
  for (int64_t c = 0; c < a.n_chains; ++c) {
    const double eta = exp(a.log_step_size[a.n_step_sizes == 1 ? 0 : c]);
    const Sums sums = sum_over_team<kThreads>(
        partial_sums<T>(a, c * a.n_elements, eta, first, n_lanes, is_wide, records && a.known_finite[c]));
    if (threadIdx.x == 0) shares[c * gridDim.x + blockIdx.x].sums = sums;
  }
  cooperative_groups::this_grid().sync();

  const auto sum_over_grid = [&](int64_t c, Sums Share::*part) {  // the same in every block
    Sums sums = {0.0, 0.0};
    for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) sums = sums + shares[c * gridDim.x + b].*part;
    return sum_over_team<kThreads>(sums);
  };
  const auto decide_chain = [&](int64_t c, const ChainScalars& s) {
    return metropolis(s.potential, s.proposal_potential, sum_over_grid(c, &Share::sums), a.mh, s.log_u);
  };
  const int64_t last = first + (a.n_elements - 1 - first) / (4 * n_lanes) * (4 * n_lanes);
  for (int64_t c = a.n_chains - 1; c >= 0; --c) {
    ChainScalars s = read_scalars(a, c, seed, step);
    const Decision d = decide_chain(c, s);
    const Stride<T> stride = stride_of<T>(exp(next_log_step_size(s, d)));
    bool is_sound = true;
    for (int64_t i = last; i >= first && i < a.n_elements; i -= 4 * n_lanes)
      is_sound &= is_finite(advance(a, c * a.n_elements, d.is_accepted, stride, {seed, step, static_cast<uint32_t>(c)},
                                    i, is_wide));
    if (!records) continue;
    const Sums next = sum_over_team<kThreads>(probe_of(is_sound));
    if (threadIdx.x == 0) shares[c * gridDim.x + blockIdx.x].next = next;
  }
  __shared__ bool is_last;
  const bool ends = is_last_block(a.rng);
  if (threadIdx.x == 0) is_last = ends;
  __syncthreads();
  if (!is_last) return;
  for (int64_t c = 0; c < a.n_chains; ++c) {
    ChainScalars s = read_scalars(a, c, seed, step);
    const Decision d = decide_chain(c, s);  // it waits for the block: every thread has read the scalars
    const double log_step_size = next_log_step_size(s, d);
    const bool is_next_finite = records && sum_over_grid(c, &Share::next).probe == 0.0;
    if (threadIdx.x != 0) continue;
    write_scalars(a, c, s, d, log_step_size);
    if (records) a.known_finite[c] = is_next_finite;
  }
  if (threadIdx.x == 0) advance_rng(a);
}

// After all decisions, adapts the shared step size to the acceptance of all chains, and proposes. Every block adapts for
// itself, and alike; the one that gets here last writes it down.
template <typename T>
__global__ void __launch_bounds__(kThreads) propose_jointly(TransitionArgs<T> a, bool is_wide) {
  const uint64_t seed = a.rng[kSeed], step = a.rng[kStep];
  const int64_t n = a.n_elements;
  Sums sums = {0.0, 0.0};
  for (int64_t c = threadIdx.x; c < a.n_chains; c += kThreads) sums.ratio += acceptance_probability(a.log_alpha[c]);
  const double acceptance = sum_over_team<kThreads>(sums).ratio / static_cast<double>(a.n_chains);
  Adaptation adaptation = load_adaptation(a.adaptation, a.adaptation_stride);
  const double log_step_size = adapted_log_step_size(a.log_step_size[0], acceptance, adaptation);
  const Stride<T> stride = stride_of<T>(exp(log_step_size));
  for_groups(a.n_chains, n, [&](int64_t c, int64_t i) {
    const int64_t row = c * n;
    const Stream stream = {seed, step, static_cast<uint32_t>(c)};
    const Quad<T> eps = noise_quad(stream, a.noise ? a.noise + row : nullptr, i, n, is_wide);
    const Quad<T> phi = load(a.phi + row, i, n, is_wide), grad = load(a.grad + row, i, n, is_wide);
    store(a.proposal + row, i, n, is_wide, proposal_quad(phi, grad, stride, eps));
  });
  if (!is_last_block(a.rng)) return;
  a.log_step_size[0] = log_step_size;
  store_adaptation(adaptation, a.adaptation);
  a.rng[kStep] = step + 1;
  a.rng[kTicket] = 0;
}

}  // namespace lae
