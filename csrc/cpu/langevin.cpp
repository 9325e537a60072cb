// CPU kernels of the Langevin ops: loops over langevin_math.h.
//
// Compiles alone, with TORCH the folder of the torch package:
// g++ -std=c++20 -O3 -ffp-contract=off -fPIC -fvisibility=hidden -DTORCH_TARGET_VERSION=0x020b000000000000 -isystem $TORCH/include -c csrc/cpu/langevin.cpp -o /tmp/langevin.o
//
// A chain is cut into blocks of kBlock elements, and a sum runs in kLanes interleaved lanes: neither the vector width
// nor the number of threads ever changes a bit.

#include <cstring>
#include <string>
#include <vector>

#include "../langevin_math.h"
#include "../langevin_ops.h"
#include "compiled_potential.h"
#include "simd.h"

namespace lae {
namespace {

constexpr int64_t kBlock = 8192;  // elements in one unit of parallel work
constexpr int kLanes = 8;         // partial sums in one block
constexpr int kTile = 256;        // normals drawn at once, few enough to stay in the first-level cache

// The normals of elements [begin, begin + n) of a chain. begin is a multiple of 4, and out has room for n rounded up
// to a multiple of 4.
template <typename T>
LAE_INLINE void normals_body(uint64_t seed, uint64_t step, uint32_t chain, int64_t begin, int64_t n,
                           T* __restrict__ out) {
  const uint32_t first = static_cast<uint32_t>(begin / 4);
  const int32_t blocks = static_cast<int32_t>((n + 3) / 4);
  for (int32_t b = 0; b < blocks; ++b) normals4(seed, step, chain, first + b, out + 4 * b);
}

template <typename T>
LAE_INLINE void ratio_body(const T* __restrict__ phi, const T* __restrict__ proposal,
                         const T* __restrict__ grad, const T* __restrict__ proposal_grad, double eta,
                         int64_t n, Sums* out) {
  double ratio[kLanes] = {}, probe[kLanes] = {};
  for_lanes<kLanes>(n, [&](int64_t i, int m) LAE_SIMD {
#pragma GCC unroll 1  // gcc then vectorizes the loop as a whole; unrolled, only parts of it
    for (int l = 0; l < m; ++l) {
      ratio[l] += ratio_element(phi[i + l], proposal[i + l], grad[i + l], proposal_grad[i + l], eta);
      probe[l] += finite_probe(proposal[i + l], proposal_grad[i + l]);
    }
  });
  *out = {total(ratio), total(probe)};
}

template <typename T>
LAE_INLINE void probe_body(const T* __restrict__ proposal, const T* __restrict__ proposal_grad, int64_t n, Sums* out) {
  double probe[kLanes] = {};
  for_lanes<kLanes>(n, [&](int64_t i, int m) LAE_SIMD {
#pragma GCC unroll 1
    for (int l = 0; l < m; ++l) probe[l] += finite_probe(proposal[i + l], proposal_grad[i + l]);
  });
  *out = {0.0, total(probe)};
}

template <typename T>
LAE_INLINE void step_body(const T* phi, const T* grad, T eta, T noise_scale, const T* __restrict__ eps,
                        int64_t n, T* proposal) {
  for (int64_t i = 0; i < n; ++i)
    proposal[i] = proposal_element(phi[i], grad[i], eta, noise_scale, eps[i]);
}

// Calls f(begin, n) for every block of a chain.
template <typename F>
void for_blocks(int64_t n_elements, F f) {
  if (n_elements == 0) return;  // there is no memory then: std::memcpy takes no null pointer, not even for 0 bytes
  if (n_elements <= kBlock) return f(0, n_elements);
  const int64_t blocks = (n_elements + kBlock - 1) / kBlock;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      const int64_t begin = b * kBlock;
      f(begin, n_elements - begin < kBlock ? n_elements - begin : kBlock);
    }
  });
}

// Calls f(chain) for every chain: chains in parallel, or the blocks of each where long chains are fewer than threads.
template <typename F>
void for_chains(int64_t n_chains, int64_t n_elements, F f) {
  if (n_elements > kBlock && n_chains < torch::stable::get_num_threads()) {
    for (int64_t c = 0; c < n_chains; ++c) f(c);
    return;
  }
  const int64_t grain = kBlock / (n_elements > 0 ? n_elements : 1);
  torch::stable::parallel_for(0, n_chains, grain > 0 ? grain : 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) f(c);
  });
}

// The normals of n_chains whole chains, one after the other; n_elements is a multiple of 4, and all fit into a tile.
template <typename T>
void draw_chains(Stream first, int64_t n_chains, int64_t n_elements, T* out) {
  uint32_t chain[kTile / 4], block[kTile / 4];
  const int32_t per_chain = static_cast<int32_t>(n_elements / 4), blocks = static_cast<int32_t>(n_chains) * per_chain;
  for (int32_t b = 0, c = 0, i = 0; b < blocks; ++b) {
    chain[b] = first.chain + c;
    block[b] = i;
    if (++i == per_chain) i = 0, ++c;
  }
  with_simd([&]() LAE_SIMD {
    for (int32_t b = 0; b < blocks; ++b) normals4(first.seed, first.step, chain[b], block[b], out + 4 * b);
  });
}

// Calls f(chain, eps) for every chain. eps is the chain's noise: its row of `noise`; or drawn here, for several short
// chains at once; or null, and f draws it.
template <typename T, typename F>
void for_chains_with_noise(int64_t n_chains, int64_t n_elements, uint64_t seed, uint64_t step, const T* noise, F f) {
  const int64_t per_group = n_elements > 0 && n_elements % 4 == 0 ? kTile / n_elements : 0;
  if (noise || per_group < 2)
    return for_chains(n_chains, n_elements, [&](int64_t c) { f(c, noise ? noise + c * n_elements : nullptr); });
  const int64_t groups = (n_chains + per_group - 1) / per_group, grain = kBlock / kTile;
  torch::stable::parallel_for(0, groups, grain, [&](int64_t first, int64_t last) {
    T drawn[kTile];
    for (int64_t g = first; g < last; ++g) {
      const int64_t begin = g * per_group, n = n_chains - begin < per_group ? n_chains - begin : per_group;
      draw_chains({seed, step, static_cast<uint32_t>(begin)}, n, n_elements, drawn);
      for (int64_t c = 0; c < n; ++c) f(begin + c, drawn + c * n_elements);
    }
  });
}

// Without a decision to make, nobody needs the ratio.
template <typename T>
Sums chain_sums(const T* phi, const T* proposal, const T* grad, const T* proposal_grad, double eta,
                int64_t n_elements, bool mh) {
  const auto block_sums = [&](int64_t i, int64_t n, Sums* out) {
    with_simd([&]() LAE_SIMD {
      if (mh)
        ratio_body(phi + i, proposal + i, grad + i, proposal_grad + i, eta, n, out);
      else
        probe_body(proposal + i, proposal_grad + i, n, out);
    });
  };
  if (n_elements <= kBlock) {
    Sums sums;
    block_sums(0, n_elements, &sums);
    return sums;
  }
  std::vector<Sums> partial((n_elements + kBlock - 1) / kBlock);
  for_blocks(n_elements, [&](int64_t i, int64_t n) { block_sums(i, n, &partial[i / kBlock]); });
  Sums total = partial[0];
  for (size_t b = 1; b < partial.size(); ++b) {
    total.ratio += partial[b].ratio;
    total.probe += partial[b].probe;
  }
  return total;
}

template <typename T>
void draw_normals(Stream stream, int64_t begin, int64_t n, T* out) {
  T tail[4];
  const int64_t whole = n / 4 * 4;
  with_simd([&]() LAE_SIMD { normals_body(stream.seed, stream.step, stream.chain, begin, whole, out); });
  if (whole == n) return;
  normals4(stream.seed, stream.step, stream.chain, static_cast<uint32_t>((begin + whole) / 4), tail);
  std::memcpy(out + whole, tail, (n - whole) * sizeof(T));
}

// proposal = phi - eta grad + sqrt(2 eta) eps for one block; eps comes from `noise` or from the stream.
template <typename T>
void propose_block(const T* phi, const T* grad, double eta, Stream stream, const T* noise, int64_t begin,
                   int64_t n, T* proposal) {
  const T drift = static_cast<T>(eta), noise_scale = static_cast<T>(std::sqrt(2.0 * eta));
  T drawn[kTile];
  for (int64_t i = begin; i < begin + n; i += kTile) {
    const int64_t m = begin + n - i < kTile ? begin + n - i : kTile;
    if (!noise) draw_normals(stream, i, m, drawn);
    const T* eps = noise ? noise + i : drawn;
    with_simd([&]() LAE_SIMD { step_body(phi + i, grad + i, drift, noise_scale, eps, m, proposal + i); });
  }
}

struct Cpu {
  using Guard = NoGuard;

  template <typename T>
  static void transition(const TransitionArgs<T>& a) {
    const uint64_t seed = a.rng[kSeed], step = a.rng[kStep];
    const bool adapts_jointly = a.adapts_jointly();
    const double first_step_size = a.n_chains > 0 ? std::exp(a.log_step_size[0]) : 0.0;
    const auto propose = [&](int64_t c, const T* eps, double eta, int64_t i, int64_t n) {
      const int64_t row = c * a.n_elements;
      propose_block(a.phi + row, a.grad + row, eta, {seed, step, static_cast<uint32_t>(c)}, eps, i, n,
                    a.proposal + row);
    };
    const auto decide_and_advance = [&](int64_t c, const T* eps) {
      const int64_t s = a.n_step_sizes == 1 ? 0 : c;
      double eta = s == 0 ? first_step_size : std::exp(a.log_step_size[s]);
      const int64_t row = c * a.n_elements;
      T *phi = a.phi + row, *grad = a.grad + row, *proposal = a.proposal + row;
      const T* proposal_grad = a.proposal_grad + row;

      const Sums sums = chain_sums(phi, proposal, grad, proposal_grad, eta, a.n_elements, a.mh);
      const double u = !a.mh       ? 1.0  // every finite proposal is accepted
                       : a.uniform ? a.uniform[c]
                                   : accept_uniform(seed, step, static_cast<uint32_t>(c));
      const Decision d = metropolis(a.potential[c], a.proposal_potential[c], sums, a.mh, log_uniform(u));
      a.is_accepted[c] = d.is_accepted;
      a.log_alpha[c] = d.log_alpha;
      a.counters[2 * c + kRejected] += !d.is_accepted && !d.is_nonfinite;
      a.counters[2 * c + kNonfinite] += d.is_nonfinite;
      if (a.acceptance) a.acceptance[c] += acceptance_probability(d.log_alpha);
      if (a.known_finite) a.known_finite[c] = false;  // the next call looks for itself
      if (d.is_accepted) a.potential[c] = a.proposal_potential[c];
      if (a.adaptation && !adapts_jointly) {
        adapt(a, s, acceptance_probability(d.log_alpha));
        eta = std::exp(a.log_step_size[s]);
      }
      for_blocks(a.n_elements, [&](int64_t i, int64_t n) {
        if (d.is_accepted) {
          std::memcpy(phi + i, proposal + i, n * sizeof(T));
          std::memcpy(grad + i, proposal_grad + i, n * sizeof(T));
        }
        if (!adapts_jointly) propose(c, eps, eta, i, n);
      });
    };
    if (adapts_jointly)  // the proposals wait for the new step size
      for_chains(a.n_chains, a.n_elements, [&](int64_t c) { decide_and_advance(c, nullptr); });
    else
      for_chains_with_noise(a.n_chains, a.n_elements, seed, step, a.noise, decide_and_advance);
    if (adapts_jointly) {
      double acceptance = 0.0;
      for (int64_t c = 0; c < a.n_chains; ++c) acceptance += acceptance_probability(a.log_alpha[c]);
      adapt(a, 0, acceptance / static_cast<double>(a.n_chains));
      const double eta = std::exp(a.log_step_size[0]);
      for_chains_with_noise(a.n_chains, a.n_elements, seed, step, a.noise, [&](int64_t c, const T* eps) {
        for_blocks(a.n_elements, [&](int64_t i, int64_t n) { propose(c, eps, eta, i, n); });
      });
    }
    a.rng[kStep] += 1;
  }

  template <typename T>
  static void adapt(const TransitionArgs<T>& a, int64_t s, double acceptance) {
    double* row = a.adaptation + s * a.adaptation_stride;
    Adaptation adaptation = load_adaptation(row, a.adaptation_stride);
    a.log_step_size[s] = adapted_log_step_size(a.log_step_size[s], acceptance, adaptation);
    store_adaptation(adaptation, row);
  }

  template <typename T>
  static void decide(const DecideArgs<T>& a) {
    for_chains(a.n_chains, a.n_elements, [&](int64_t c) {
      const int64_t row = c * a.n_elements;
      const Sums sums = chain_sums(a.phi + row, a.proposal + row, a.grad + row, a.proposal_grad + row,
                                   a.step_size[a.n_step_sizes == 1 ? 0 : c], a.n_elements, a.mh);
      const double u =
          a.uniform ? a.uniform[c]
                    : accept_uniform(a.rng[kSeed], a.rng[kStep], static_cast<uint32_t>(c));
      const Decision d = metropolis(a.potential[c], a.proposal_potential[c], sums, a.mh, log_uniform(u));
      a.is_accepted[c] = d.is_accepted;
      a.is_nonfinite[c] = d.is_nonfinite;
      a.log_alpha[c] = d.log_alpha;
    });
  }

  template <typename T>
  static void propose(const ProposeArgs<T>& a) {
    const uint64_t seed = a.rng[kSeed], step = a.rng[kStep];
    for_chains_with_noise(a.n_chains, a.n_elements, seed, step, a.noise, [&](int64_t c, const T* eps) {
      const int64_t row = c * a.n_elements;
      for_blocks(a.n_elements, [&](int64_t i, int64_t n) {
        propose_block(a.phi + row, a.grad + row, a.step_size[a.n_step_sizes == 1 ? 0 : c],
                      {seed, step, static_cast<uint32_t>(c)}, eps, i, n, a.proposal + row);
      });
    });
    a.next_rng[kSeed] = a.rng[kSeed];
    a.next_rng[kStep] = a.rng[kStep] + 1;
    a.next_rng[kTicket] = 0;
  }

  template <typename T>
  static void noise(const NoiseArgs<T>& a) {
    const uint64_t seed = a.rng[kSeed], step = a.rng[kStep];
    if constexpr (!std::is_same_v<T, int64_t>)
      if (a.kind == kStandardNormals && a.n_elements > 0 && a.n_elements % 4 == 0 && 2 * a.n_elements <= kTile)
        return for_chains_with_noise<T>(a.n_chains, a.n_elements, seed, step, nullptr, [&](int64_t c, const T* eps) {
          std::memcpy(a.out + c * a.n_elements, eps, a.n_elements * sizeof(T));
        });
    for_chains(a.n_chains, a.n_elements, [&](int64_t c) {
      const uint32_t chain = static_cast<uint32_t>(c);
      T* out = a.out + c * a.n_elements;
      for_blocks(a.n_elements, [&](int64_t begin, int64_t n) {
        if constexpr (std::is_same_v<T, int64_t>) {
          for (int64_t i = begin; i < begin + n; ++i)
            out[i] = philox(seed, static_cast<uint32_t>(i / 4), chain, step, kNormals).w[i % 4];
        } else if (a.kind == kStandardNormals) {
          draw_normals({seed, step, chain}, begin, n, out + begin);
        } else if (a.kind == kUniformPairs) {
          for (int64_t i = begin; i < begin + n; ++i) {
            T u[4];
            uniforms4(seed, step, chain, static_cast<uint32_t>(i / 4), u);
            out[i] = u[i % 4];
          }
        } else {
          out[0] = static_cast<T>(accept_uniform(seed, step, chain));
        }
      });
    });
  }
};

// n_steps steps of evaluation and transition. Each adds to `acceptance` [C], and wherever `thin` steps are complete (`since`
// of them were taken before) a draw is written to `draws` [K, C, D], its energies and mean acceptances to `energies` and
// `rates` [K, C], and `acceptance` starts again.
void walk(std::string library, std::vector<Tensor> constants, Tensor phi, Tensor potential, Tensor grad, Tensor proposal,
          Tensor rng, Tensor log_step_size, Tensor counters, Tensor is_accepted, Tensor log_alpha,
          std::optional<Tensor> adaptation, Tensor acceptance, Tensor draws, Tensor energies, Tensor rates,
          int64_t n_steps, int64_t thin, int64_t since, bool mh) {
  const Check check("walk", phi);
  CompiledPotential& evaluate = CompiledPotential::of(library);
  LangevinOps<Cpu>::with_state(
      check, phi, potential, grad, proposal, rng, log_step_size, counters, is_accepted, log_alpha, adaptation, mh,
      [&](auto a) {
        using T = std::remove_pointer_t<decltype(a.phi)>;
        const int64_t c = a.n_chains, size = c * a.n_elements;
        STD_TORCH_CHECK(thin > 0 && since >= 0 && since < thin && n_steps >= 0, "lae_fast::walk: counts are out of range");
        const int64_t n_draws = (since + n_steps) / thin;
        check.array("draws", draws, phi.scalar_type(), {n_draws, c, a.n_elements});
        check.array("energies", energies, ScalarType::Double, {n_draws, c});
        check.array("rates", rates, ScalarType::Double, {n_draws, c});
        check.array("acceptance", acceptance, ScalarType::Double, {c});
        a.acceptance = pointer<double>(acceptance);
        for (int64_t k = 0; k < n_steps; ++k) {
          const auto [v, g] = evaluate(proposal, constants);
          if (k == 0) check.array("the compiled potential", v, ScalarType::Double, {c});
          if (k == 0) check.like("the compiled gradient", g);
          a.proposal_potential = pointer<double>(v);
          a.proposal_grad = pointer<T>(g);
          Cpu::transition(a);
          const int64_t draw = (since + k + 1) / thin - 1;
          if ((since + k + 1) % thin) continue;
          std::memcpy(pointer<T>(draws) + draw * size, a.phi, size * sizeof(T));
          std::memcpy(pointer<double>(energies) + draw * c, a.potential, c * sizeof(double));
          for (int64_t i = 0; i < c; ++i) {
            pointer<double>(rates)[draw * c + i] = a.acceptance[i] / static_cast<double>(thin);
            a.acceptance[i] = 0.0;
          }
        }
      });
}

}  // namespace
}  // namespace lae

// The SIMD level in use, for lae_fast.info.
extern "C" __attribute__((visibility("default"))) const char* lae_fast_simd_level() {
  return lae::simd_name();
}

STABLE_TORCH_LIBRARY_IMPL(lae_fast, CPU, library) {
  lae::LangevinOps<lae::Cpu>::register_with(library);
  library.impl("walk", TORCH_BOX(&lae::walk));
}
