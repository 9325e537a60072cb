// CUDA kernels of the Langevin ops: load / reduce / launch over langevin_math.h.
//
// Compiles alone, with TORCH the folder of the torch package:
// nvcc -std=c++20 -O3 --fmad=false -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -arch=sm_90 -Xcompiler -fPIC -c csrc/cuda/langevin.cu -o /tmp/langevin.o
//
// A thread owns groups of four consecutive elements: one Philox call makes the noise of a group. A *team* serves a
// chain: a few lanes of a warp, a block, or (for a few long chains) the whole grid, with one barrier. The team depends
// on the shape of the problem and on the card alone, so a run never depends on timing. Few chains of a usual length have
// a kernel of their own, `transition_few`: then nothing counts but how long one chain takes.

#include "../langevin_ops.h"
#include "launch.h"
#include "quads.h"
#include "transition.h"

namespace lae {
namespace {

constexpr int kManyThreads = 512;  // threads of a block if few chains have one each: only latency counts then
constexpr int64_t kMaxFewElements = 4 * kManyThreads;  // a group for each thread
constexpr int64_t kMaxRowElements = 8192;              // few much longer chains are spread over all blocks

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

// Whether all blocks serve one chain after the other. A block for each serves chains that are not much longer than they are many.
bool takes_grid(int64_t n_chains, int64_t n_elements) {
  return n_chains > 0 && n_elements > n_chains * kMaxRowElements;
}

int multiprocessors() {
  return device_attribute(cudaDevAttrMultiProcessorCount);
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
    if (takes_grid(a.n_chains, a.n_elements))
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
