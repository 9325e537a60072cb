// CUDA kernels of the Langevin ops: load / reduce / launch over langevin_math.h.
//
// Compiles alone, with TORCH the folder of the torch package:
// nvcc -std=c++20 -O3 --fmad=false -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -arch=sm_90 -Xcompiler -fPIC -c csrc/cuda/langevin.cu -o /tmp/langevin.o
//
// A thread owns groups of four consecutive elements: one Philox call makes the noise of a group. A *team* serves a
// chain: a few lanes of a warp, a block, or (for a few long chains) the whole grid, with one barrier. The team depends
// on the shape of the problem and on the card alone, so a run never depends on timing. Few chains of a usual length have
// a kernel of their own, `transition_few`: then nothing counts but how long one chain takes.

#include <cooperative_groups.h>

#include "../langevin_math.h"
#include "../langevin_ops.h"
#include "launch.h"
#include "reduce.h"

namespace lae {
namespace {

constexpr int kThreads = 256;              // threads of a block
constexpr int kManyThreads = 512;          // threads of a block if few chains have one each: only latency counts then
constexpr int64_t kMaxFewElements = 4 * kManyThreads;  // a group for each thread
constexpr int64_t kMaxRowElements = 8192;  // a few longer chains are spread over all blocks

// Elements i .. i + 3 of a row of n; `is_wide` promises n % 4 == 0 and aligned rows.
template <typename T>
__device__ Quad<T> load(const T* row, int64_t i, int64_t n, bool is_wide) {
  if (is_wide) return *reinterpret_cast<const Quad<T>*>(row + i);
  Quad<T> q = {};
  for (int k = 0; k < 4; ++k)
    if (i + k < n) q.v[k] = row[i + k];
  return q;
}
template <typename T>
__device__ void store(T* row, int64_t i, int64_t n, bool is_wide, const Quad<T>& q) {
  if (is_wide) {
    *reinterpret_cast<Quad<T>*>(row + i) = q;
    return;
  }
  for (int k = 0; k < 4; ++k)
    if (i + k < n) row[i + k] = q.v[k];
}

template <typename T>
__device__ Quad<T> select(bool condition, const Quad<T>& yes, const Quad<T>& no) {  // in registers
  Quad<T> q;
  for (int k = 0; k < 4; ++k) q.v[k] = condition ? yes.v[k] : no.v[k];
  return q;
}

__device__ Sums operator+(Sums a, Sums b) {
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

template <typename T>
__device__ bool is_finite(const Quad<T>& q) {
  bool result = true;
  for (int k = 0; k < 4; ++k) result = result && std::isfinite(q.v[k]);
  return result;
}
// What finite_probe sums to.
__device__ Sums probe_of(bool is_finite) {
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
__device__ double next_log_step_size(ChainScalars& s, const Decision& d) {
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
__device__ bool is_last_of_grid(int64_t* rng) {
  if (gridDim.x == 1) return true;  // a fence and an atomic take longer than a short chain's arithmetic
  __threadfence();
  const auto before = atomicAdd(reinterpret_cast<unsigned long long*>(rng + kTicket), 1ull);
  return before % gridDim.x + 1 == gridDim.x;
}
// The answer is in thread 0.
__device__ bool is_last_block(int64_t* rng) {
  __syncthreads();
  return threadIdx.x == 0 && is_last_of_grid(rng);
}
template <typename T>
__device__ void advance_rng(const TransitionArgs<T>& a) {
  a.rng[kStep] += !a.adapts_jointly();  // before a joint adaptation: propose_jointly draws the noise of this step
  a.rng[kTicket] = 0;
}

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

// One team serves one chain.
template <typename T, int kTeam>
__global__ void __launch_bounds__(kThreads) decide_rows(DecideArgs<T> a, bool is_wide) {
  const int64_t chain = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam;
  const bool is_real = chain < a.n_chains;  // the last block may hold idle teams: they only take part in the sums
  const int64_t c = is_real ? chain : 0, first = 4 * (threadIdx.x % kTeam);
  const double eta = a.step_size[a.n_step_sizes == 1 ? 0 : c];
  const Sums sums = sum_over_team<kTeam>(
      is_real ? partial_sums<T>(a, c * a.n_elements, eta, first, kTeam, is_wide) : Sums{0.0, 0.0});
  if (!is_real || first != 0) return;
  const double u =
      a.uniform ? a.uniform[c] : accept_uniform(a.rng[kSeed], a.rng[kStep], static_cast<uint32_t>(c));
  const Decision d = metropolis(a.potential[c], a.proposal_potential[c], sums, a.mh, log_uniform(u));
  a.is_accepted[c] = d.is_accepted;
  a.is_nonfinite[c] = d.is_nonfinite;
  a.log_alpha[c] = d.log_alpha;
}

// Calls f(chain, first element) for all groups of all chains, spread over the grid.
template <typename F>
__device__ void for_groups(int64_t n_chains, int64_t n_elements, F f) {
  const int64_t groups = (n_elements + 3) / 4;
  for (int64_t k = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; k < n_chains * groups;
       k += static_cast<int64_t>(gridDim.x) * kThreads)
    f(k / groups, 4 * (k % groups));
}

template <typename T>
__global__ void __launch_bounds__(kThreads) propose_all(ProposeArgs<T> a, bool is_wide) {
  const uint64_t seed = a.rng[kSeed], step = a.rng[kStep];
  const int64_t n = a.n_elements;
  for_groups(a.n_chains, n, [&](int64_t c, int64_t i) {
    const int64_t row = c * n;
    const Stream stream = {seed, step, static_cast<uint32_t>(c)};
    const Quad<T> eps = noise_quad(stream, a.noise ? a.noise + row : nullptr, i, n, is_wide);
    store(a.proposal + row, i, n, is_wide,
          proposal_quad(load(a.phi + row, i, n, is_wide), load(a.grad + row, i, n, is_wide),
                        stride_of<T>(a.step_size[a.n_step_sizes == 1 ? 0 : c]), eps));
  });
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    a.next_rng[kSeed] = a.rng[kSeed];
    a.next_rng[kStep] = a.rng[kStep] + 1;
    a.next_rng[kTicket] = 0;
  }
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

template <typename T>
__global__ void __launch_bounds__(kThreads) noise_all(NoiseArgs<T> a) {
  const uint64_t seed = a.rng[kSeed], step = a.rng[kStep];
  for_groups(a.n_chains, a.n_elements, [&](int64_t c, int64_t i) {
    const uint32_t chain = static_cast<uint32_t>(c), block = static_cast<uint32_t>(i / 4);
    Quad<T> q;
    if constexpr (std::is_same_v<T, int64_t>) {
      const Words x = philox(seed, block, chain, step, kNormals);
      for (int k = 0; k < 4; ++k) q.v[k] = x.w[k];
    } else if (a.kind == kStandardNormals) {
      normals4(seed, step, chain, block, q.v);
    } else if (a.kind == kUniformPairs) {
      uniforms4(seed, step, chain, block, q.v);
    } else {
      q.v[0] = static_cast<T>(accept_uniform(seed, step, chain));
    }
    store(a.out + c * a.n_elements, i, a.n_elements, false, q);
  });
}

template <typename T, typename... Rest>
bool all_wide(int64_t n_elements, const T* p, const Rest*... rest) {
  const bool is_wide = n_elements % 4 == 0 && is_aligned(p);
  if constexpr (sizeof...(rest) == 0)
    return is_wide;
  else
    return is_wide && all_wide(n_elements, rest...);
}

int multiprocessors() {
  int count = 0;
  check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, current_device()), "device attribute");
  return count;
}

// How many blocks for_groups gets: enough, but no more than the card can use.
unsigned blocks_for(int64_t n_chains, int64_t n_elements) {
  const int64_t blocks = (n_chains * ((n_elements + 3) / 4) + kThreads - 1) / kThreads;
  const int64_t most = 32 * multiprocessors();
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

struct Cuda {
  using Guard = DeviceGuard;

  template <typename T, int kTeam>
  static void transition_by_rows(const TransitionArgs<T>& a, bool is_wide) {
    constexpr int kBlock = kTeam < kThreads ? kThreads : kTeam, kChains = kBlock / kTeam;
    const int64_t blocks = (a.n_chains + kChains - 1) / kChains;
    launch("transition", {static_cast<unsigned>(blocks > 0 ? blocks : 1), kBlock}, transition_rows<T, kTeam, kBlock>, a,
           is_wide);
  }

  template <typename T>
  static void transition_by_grid(const TransitionArgs<T>& a, bool is_wide) {
    int per_multiprocessor = 0;
    check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, transition_grid<T>,
                                                             kThreads, 0),
               "occupancy");
    const int64_t most = static_cast<int64_t>(per_multiprocessor) * multiprocessors();
    const int64_t useful = (a.n_elements + 4 * kThreads - 1) / (4 * kThreads);
    const int64_t blocks = useful < most ? useful : most;
    Tensor workspace = new_workspace(a.n_chains * blocks * static_cast<int64_t>(sizeof(Share) / sizeof(double)));
    const Shape all_at_once = {static_cast<unsigned>(blocks), kThreads, 0, true};
    launch("transition", all_at_once, transition_grid<T>, a, static_cast<Share*>(workspace.data_ptr()), is_wide);
  }

  template <typename T>
  static void transition(const TransitionArgs<T>& a) {
    const bool is_wide = all_wide(a.n_elements, a.phi, a.grad, a.proposal, a.proposal_grad) &&
                         (!a.noise || all_wide(a.n_elements, a.noise));
    decide_and_advance(a, is_wide);
    if (!a.adapts_jointly()) return;
    // No more blocks than run at once: each of them adds up the acceptances.
    const unsigned blocks = blocks_for(a.n_chains, a.n_elements), most = 4 * multiprocessors();
    launch("transition", {blocks < most ? blocks : most, kThreads}, propose_jointly<T>, a, is_wide);
  }

  template <typename T>
  static void decide_and_advance(const TransitionArgs<T>& a, bool is_wide) {
    if (a.n_chains > 0 && a.n_elements > kMaxRowElements && a.n_chains < multiprocessors())
      transition_by_grid(a, is_wide);
    else if (a.n_elements <= 8)
      transition_by_rows<T, 2>(a, is_wide);
    else if (a.n_elements <= 64)
      transition_by_rows<T, 8>(a, is_wide);
    else if (a.n_elements <= 512)
      transition_by_rows<T, 32>(a, is_wide);
    else if (a.n_chains > multiprocessors())
      transition_by_rows<T, kThreads>(a, is_wide);
    else if (a.n_elements > kMaxFewElements || a.n_chains == 0)
      transition_by_rows<T, kManyThreads>(a, is_wide);
    else
      launch("transition", {static_cast<unsigned>(a.n_chains), kManyThreads + 32}, transition_few<T, kManyThreads>, a,
             is_wide);
  }

  template <typename T>
  static void decide(const DecideArgs<T>& a) {
    if (a.n_chains == 0) return;
    if (a.n_elements <= 8)
      decide_by_rows<T, 2>(a);
    else if (a.n_elements <= 64)
      decide_by_rows<T, 8>(a);
    else if (a.n_elements <= 512)
      decide_by_rows<T, 32>(a);
    else
      decide_by_rows<T, kThreads>(a);
  }

  template <typename T, int kTeam>
  static void decide_by_rows(const DecideArgs<T>& a) {
    const bool is_wide = all_wide(a.n_elements, a.phi, a.proposal, a.grad, a.proposal_grad);
    constexpr int kChains = kThreads / kTeam;
    const int64_t blocks = (a.n_chains + kChains - 1) / kChains;
    launch("decide", {static_cast<unsigned>(blocks), kThreads}, decide_rows<T, kTeam>, a, is_wide);
  }

  template <typename T>
  static void propose(const ProposeArgs<T>& a) {
    const bool is_wide = all_wide(a.n_elements, a.phi, a.grad, a.proposal) &&
                         (!a.noise || all_wide(a.n_elements, a.noise));
    launch("propose", {blocks_for(a.n_chains, a.n_elements), kThreads}, propose_all<T>, a, is_wide);
  }

  template <typename T>
  static void noise(const NoiseArgs<T>& a) {
    launch("noise", {blocks_for(a.n_chains, a.n_elements), kThreads}, noise_all<T>, a);
  }
};

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CUDA, library) {
  lae::LangevinOps<lae::Cuda>::register_with(library);
}
