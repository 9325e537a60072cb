// CUDA kernels of the Langevin ops: load / reduce / launch over langevin_math.h.
//
// A thread owns groups of four consecutive elements, one Philox call each. A chain is served by a
// *team*: a few lanes of a warp, a block, or (a few long chains) the whole grid behind one barrier. The
// team depends on the problem's shape and the card alone, so a run never depends on timing.

#include <cooperative_groups.h>

#include "../langevin_math.h"
#include "../langevin_ops.h"
#include "launch.h"

namespace lae {
namespace {

constexpr int kThreads = 256;                // of every block
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxRowElements = 8192;    // longer chains are spread over blocks when they are few

// ---- device helpers ----------------------------------------------------------------------------

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

__device__ Sums operator+(Sums a, Sums b) {
  return {a.ratio + b.ratio, a.probe + b.probe};
}

// Sum over the kTeam threads of a team; every thread of the team gets the result. All threads of the
// block must call it. kTeam: a power of two up to 32, or kThreads.
template <int kTeam>
__device__ Sums team_sum(Sums s) {
  constexpr int kWidth = kTeam < 32 ? kTeam : 32;
  for (int offset = kWidth / 2; offset > 0; offset /= 2) {
    s.ratio += __shfl_xor_sync(0xFFFFFFFFu, s.ratio, offset, kWidth);
    s.probe += __shfl_xor_sync(0xFFFFFFFFu, s.probe, offset, kWidth);
  }
  __syncwarp();  // shuffles alone do not order memory: the team's reads are done before its lane 0 writes
  if constexpr (kTeam > 32) {
    static_assert(kTeam == kThreads);
    __shared__ Sums warps[kWarps];
    __syncthreads();  // the previous sum has been read
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = s;
    __syncthreads();
    s = warps[0];
    for (int w = 1; w < kWarps; ++w) s = s + warps[w];
  }
  return s;
}

// This thread's share of a chain's sums: groups lane, lane + n_lanes, ...
template <typename T>
__device__ Sums partial_sums(const T* phi, const T* proposal, const T* grad, const T* proposal_grad,
                             double eta, int64_t lane, int64_t n_lanes, int64_t n, bool is_wide) {
  Sums sums = {0.0, 0.0};
  for (int64_t i = 4 * lane; i < n; i += 4 * n_lanes) {
    const Quad<T> x = load(phi, i, n, is_wide), y = load(proposal, i, n, is_wide);
    const Quad<T> g = load(grad, i, n, is_wide), h = load(proposal_grad, i, n, is_wide);
    for (int k = 0; k < 4; ++k) {
      sums.ratio += ratio_element(x.v[k], y.v[k], g.v[k], h.v[k], eta);
      sums.probe += finite_probe(y.v[k], h.v[k]);
    }
  }
  return sums;
}

struct Stream {  // the noise of one chain in this launch
  uint64_t seed, step;
  uint32_t chain;
};

template <typename T>
__device__ Quad<T> proposal_quad(const Quad<T>& phi, const Quad<T>& grad, double eta, Stream stream,
                                 const T* noise_row, int64_t i, int64_t n, bool is_wide) {
  const T drift = static_cast<T>(eta), noise_scale = static_cast<T>(sqrt(2.0 * eta));
  Quad<T> eps;
  if (noise_row)
    eps = load(noise_row, i, n, is_wide);
  else
    normals4(stream.seed, stream.step, stream.chain, static_cast<uint32_t>(i / 4), eps.v);
  Quad<T> out;
  for (int k = 0; k < 4; ++k)
    out.v[k] = proposal_element(phi.v[k], grad.v[k], drift, noise_scale, eps.v[k]);
  return out;
}

// ---- transition --------------------------------------------------------------------------------

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
                 : Adaptation{}};  // of rate 0
}

// The chain's step size from now on; advances the adaptation's state in `s`.
__device__ double next_log_step_size(ChainScalars& s, const Decision& d) {
  return adapted_log_step_size(s.log_step_size, acceptance_probability(d.log_alpha), s.adaptation);
}

// Select, then propose anew (unless that waits for all decisions): this thread's groups of one chain.
template <typename T>
__device__ void advance(const TransitionArgs<T>& a, int64_t c, bool is_accepted, double eta, Stream stream,
                        int64_t lane, int64_t n_lanes, bool is_wide) {
  const int64_t n = a.n_elements, row = c * n;
  const T* noise_row = a.noise ? a.noise + row : nullptr;
  for (int64_t i = 4 * lane; i < n; i += 4 * n_lanes) {
    const Quad<T> phi = load(is_accepted ? a.proposal + row : a.phi + row, i, n, is_wide);
    const Quad<T> grad = load(is_accepted ? a.proposal_grad + row : a.grad + row, i, n, is_wide);
    if (is_accepted) {
      store(a.phi + row, i, n, is_wide, phi);
      store(a.grad + row, i, n, is_wide, grad);
    }
    if (!a.adapts_jointly())
      store(a.proposal + row, i, n, is_wide,
            proposal_quad(phi, grad, eta, stream, noise_row, i, n, is_wide));
  }
}

template <typename T>
__device__ void write_scalars(const TransitionArgs<T>& a, int64_t c, const ChainScalars& s,
                              const Decision& d, double log_step_size) {
  a.is_accepted[c] = d.is_accepted;
  a.log_alpha[c] = d.log_alpha;
  a.counters[2 * c + kRejected] += !d.is_accepted && !d.is_nonfinite;
  a.counters[2 * c + kNonfinite] += d.is_nonfinite;
  if (d.is_accepted) a.potential[c] = s.proposal_potential;
  if (a.adaptation && !a.adapts_jointly()) {
    a.log_step_size[c] = log_step_size;
    store_adaptation(s.adaptation, a.adaptation + c * a.adaptation_stride);
  }
}

// True in one thread of the last block to get here; every other block's reads and writes are then done.
__device__ bool is_last_block(int64_t* rng) {
  __syncthreads();
  if (threadIdx.x != 0) return false;
  if (gridDim.x == 1) return true;  // a fence and an atomic take longer than a short chain's arithmetic
  __threadfence();
  const auto before = atomicAdd(reinterpret_cast<unsigned long long*>(rng + kTicket), 1ull);
  return before % gridDim.x + 1 == gridDim.x;
}
template <typename T>
__device__ void advance_rng(const TransitionArgs<T>& a) {
  a.rng[kStep] += !a.adapts_jointly();  // a joint adaptation comes before the proposals, which advance it
  a.rng[kTicket] = 0;
}

// One team a chain.
template <typename T, int kTeam>
__global__ void __launch_bounds__(kThreads) transition_rows(TransitionArgs<T> a, bool is_wide) {
  const uint64_t seed = a.rng[kSeed], step = a.rng[kStep];
  const int64_t chain = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam;
  const bool is_real = chain < a.n_chains;      // the last block may hold idle teams, which still
  const int64_t c = is_real ? chain : 0;        // take part in the reductions
  const int64_t lane = threadIdx.x % kTeam, n = is_real ? a.n_elements : 0, row = c * a.n_elements;
  ChainScalars s = is_real ? read_scalars(a, c, seed, step) : ChainScalars{};
  const Sums sums = team_sum<kTeam>(partial_sums(a.phi + row, a.proposal + row, a.grad + row,
                                                 a.proposal_grad + row, exp(s.log_step_size), lane, kTeam,
                                                 n, is_wide));
  if (is_real) {
    const Decision d = metropolis(s.potential, s.proposal_potential, sums, a.mh, s.log_u);
    const double log_step_size = next_log_step_size(s, d);
    advance(a, c, d.is_accepted, exp(log_step_size), {seed, step, static_cast<uint32_t>(c)}, lane, kTeam,
            is_wide);
    if (lane == 0) write_scalars(a, c, s, d, log_step_size);
  }
  if (is_last_block(a.rng)) advance_rng(a);
}

// The whole grid on each of a few long chains; all blocks are resident (cooperative launch).
// partials: [C, gridDim.x]. The chains' scalars stay as they were until the last block has finished.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    transition_grid(TransitionArgs<T> a, Sums* partials, bool is_wide) {
  const uint64_t seed = a.rng[kSeed], step = a.rng[kStep];
  const int64_t lane = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t n_lanes = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t c = 0; c < a.n_chains; ++c) {
    const int64_t row = c * a.n_elements;
    const double eta = exp(a.log_step_size[a.n_step_sizes == 1 ? 0 : c]);
    const Sums sums = team_sum<kThreads>(partial_sums(a.phi + row, a.proposal + row, a.grad + row,
                                                      a.proposal_grad + row, eta, lane, n_lanes,
                                                      a.n_elements, is_wide));
    if (threadIdx.x == 0) partials[c * gridDim.x + blockIdx.x] = sums;
  }
  cooperative_groups::this_grid().sync();

  const auto decide_chain = [&](int64_t c, const ChainScalars& s) {  // the same in every block
    Sums sums = {0.0, 0.0};
    for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) sums = sums + partials[c * gridDim.x + b];
    return metropolis(s.potential, s.proposal_potential, team_sum<kThreads>(sums), a.mh, s.log_u);
  };
  for (int64_t c = 0; c < a.n_chains; ++c) {
    ChainScalars s = read_scalars(a, c, seed, step);
    const Decision d = decide_chain(c, s);
    advance(a, c, d.is_accepted, exp(next_log_step_size(s, d)),
            {seed, step, static_cast<uint32_t>(c)}, lane, n_lanes, is_wide);
  }
  __shared__ bool is_last;
  const bool last = is_last_block(a.rng);
  if (threadIdx.x == 0) is_last = last;
  __syncthreads();
  if (!is_last) return;
  for (int64_t c = 0; c < a.n_chains; ++c) {
    ChainScalars s = read_scalars(a, c, seed, step);
    const Decision d = decide_chain(c, s);
    const double log_step_size = next_log_step_size(s, d);
    __syncthreads();  // every thread has read the scalars
    if (threadIdx.x == 0) write_scalars(a, c, s, d, log_step_size);
  }
  if (threadIdx.x == 0) advance_rng(a);
}

// What the proposals after a joint adaptation read while they advance the rng itself.
struct Joint {
  double step_size;
  int64_t rng[3];
};

// One block, between the decisions and the proposals: the shared step size, from all chains' acceptance.
template <typename T>
__global__ void __launch_bounds__(kThreads) adapt_jointly(TransitionArgs<T> a, Joint* joint) {
  Sums sums = {0.0, 0.0};
  for (int64_t c = threadIdx.x; c < a.n_chains; c += kThreads)
    sums.ratio += acceptance_probability(a.log_alpha[c]);
  sums = team_sum<kThreads>(sums);
  if (threadIdx.x != 0) return;
  Adaptation adaptation = load_adaptation(a.adaptation, a.adaptation_stride);
  a.log_step_size[0] =
      adapted_log_step_size(a.log_step_size[0], sums.ratio / static_cast<double>(a.n_chains), adaptation);
  store_adaptation(adaptation, a.adaptation);
  joint->step_size = exp(a.log_step_size[0]);
  for (int k = 0; k < 3; ++k) joint->rng[k] = a.rng[k];
}

// ---- the halves, and the noise alone -----------------------------------------------------------

// One block a chain.
template <typename T>
__global__ void __launch_bounds__(kThreads) decide_rows(DecideArgs<T> a, bool is_wide) {
  const int64_t c = blockIdx.x, row = c * a.n_elements;
  const double eta = a.step_size[a.n_step_sizes == 1 ? 0 : c];
  const Sums sums = team_sum<kThreads>(partial_sums(a.phi + row, a.proposal + row, a.grad + row,
                                                    a.proposal_grad + row, eta, threadIdx.x, kThreads,
                                                    a.n_elements, is_wide));
  if (threadIdx.x != 0) return;
  const double u =
      a.uniform ? a.uniform[c] : accept_uniform(a.rng[kSeed], a.rng[kStep], static_cast<uint32_t>(c));
  const Decision d = metropolis(a.potential[c], a.proposal_potential[c], sums, a.mh, log_uniform(u));
  a.is_accepted[c] = d.is_accepted;
  a.is_nonfinite[c] = d.is_nonfinite;
  a.log_alpha[c] = d.log_alpha;
}

// Grid-stride over all groups of four of all chains.
template <typename F>
__device__ void for_groups(int64_t n_chains, int64_t n_elements, F f) {  // f(chain, first element)
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
    store(a.proposal + row, i, n, is_wide,
          proposal_quad(load(a.phi + row, i, n, is_wide), load(a.grad + row, i, n, is_wide),
                        a.step_size[a.n_step_sizes == 1 ? 0 : c],
                        {seed, step, static_cast<uint32_t>(c)}, a.noise ? a.noise + row : nullptr, i, n,
                        is_wide));
  });
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    a.next_rng[kSeed] = a.rng[kSeed];
    a.next_rng[kStep] = a.rng[kStep] + 1;
    a.next_rng[kTicket] = 0;
  }
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

// ---- launches ----------------------------------------------------------------------------------

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

unsigned blocks_for(int64_t n_chains, int64_t n_elements) {  // enough for for_groups, never too many
  const int64_t blocks = (n_chains * ((n_elements + 3) / 4) + kThreads - 1) / kThreads;
  const int64_t most = 32 * multiprocessors();
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

struct Cuda {
  using Guard = DeviceGuard;

  template <typename T, int kTeam>
  static void transition_by_rows(const TransitionArgs<T>& a, bool is_wide) {
    constexpr int kChains = kThreads / kTeam;
    const int64_t blocks = (a.n_chains + kChains - 1) / kChains;
    transition_rows<T, kTeam><<<static_cast<unsigned>(blocks > 0 ? blocks : 1), kThreads, 0, current_stream()>>>(
        a, is_wide);
    check_cuda(cudaGetLastError(), "transition");
  }

  template <typename T>
  static void transition_by_grid(TransitionArgs<T> a, bool is_wide) {
    int per_multiprocessor = 0;
    check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, transition_grid<T>,
                                                             kThreads, 0),
               "occupancy");
    const int64_t most = static_cast<int64_t>(per_multiprocessor) * multiprocessors();
    const int64_t useful = (a.n_elements + 4 * kThreads - 1) / (4 * kThreads);
    const int64_t blocks = useful < most ? useful : most;
    Tensor workspace = new_workspace(a.n_chains * blocks * 2);
    Sums* partials = static_cast<Sums*>(workspace.data_ptr());
    void* arguments[] = {&a, &partials, &is_wide};
    check_cuda(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(transition_grid<T>),
                                           dim3(static_cast<unsigned>(blocks)), dim3(kThreads), arguments, 0,
                                           current_stream()),
               "transition");
  }

  static Tensor new_workspace(int64_t n_doubles) {
    return torch::stable::empty({n_doubles}, ScalarType::Double, std::nullopt,
                                torch::stable::Device(torch::headeronly::DeviceType::CUDA, current_device()));
  }

  template <typename T>
  static void transition(const TransitionArgs<T>& a) {
    decide_and_advance(a);
    if (!a.adapts_jointly()) return;
    Tensor workspace = new_workspace((sizeof(Joint) + sizeof(double) - 1) / sizeof(double));
    Joint* joint = static_cast<Joint*>(workspace.data_ptr());
    adapt_jointly<T><<<1, kThreads, 0, current_stream()>>>(a, joint);
    check_cuda(cudaGetLastError(), "transition");
    propose(ProposeArgs<T>{a.n_chains, a.n_elements, 1, a.phi, a.grad, &joint->step_size, joint->rng,
                           a.noise, a.proposal, a.rng});
  }

  template <typename T>
  static void decide_and_advance(const TransitionArgs<T>& a) {
    const bool is_wide = all_wide(a.n_elements, a.phi, a.grad, a.proposal, a.proposal_grad) &&
                         (!a.noise || all_wide(a.n_elements, a.noise));
    if (a.n_chains > 0 && a.n_elements > kMaxRowElements && a.n_chains < multiprocessors())
      transition_by_grid(a, is_wide);
    else if (a.n_elements <= 8)
      transition_by_rows<T, 2>(a, is_wide);
    else if (a.n_elements <= 64)
      transition_by_rows<T, 8>(a, is_wide);
    else if (a.n_elements <= 512)
      transition_by_rows<T, 32>(a, is_wide);
    else
      transition_by_rows<T, kThreads>(a, is_wide);
  }

  template <typename T>
  static void decide(const DecideArgs<T>& a) {
    if (a.n_chains == 0) return;
    const bool is_wide = all_wide(a.n_elements, a.phi, a.proposal, a.grad, a.proposal_grad);
    decide_rows<T><<<static_cast<unsigned>(a.n_chains), kThreads, 0, current_stream()>>>(a, is_wide);
    check_cuda(cudaGetLastError(), "decide");
  }

  template <typename T>
  static void propose(const ProposeArgs<T>& a) {
    const bool is_wide = all_wide(a.n_elements, a.phi, a.grad, a.proposal) &&
                         (!a.noise || all_wide(a.n_elements, a.noise));
    propose_all<T><<<blocks_for(a.n_chains, a.n_elements), kThreads, 0, current_stream()>>>(a, is_wide);
    check_cuda(cudaGetLastError(), "propose");
  }

  template <typename T>
  static void noise(const NoiseArgs<T>& a) {
    noise_all<T><<<blocks_for(a.n_chains, a.n_elements), kThreads, 0, current_stream()>>>(a);
    check_cuda(cudaGetLastError(), "noise");
  }
};

}  // namespace
}  // namespace lae

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CUDA, library) {
  lae::Ops<lae::Cuda>::register_with(library);
}
