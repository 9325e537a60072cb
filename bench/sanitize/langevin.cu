// Compares the Langevin kernels with loops on the host over the same math headers, at ragged sizes. build.sh builds it.
//
// Values without a sum in them must agree to the last bit (the compilers contract nothing), and so must decisions;
// log alpha, the step sizes and what follows from them must agree to the rounding of a float64 sum. int64 values are
// compared as float64, which is exact for 32-bit words and small counts.

#include <algorithm>

#include "../../csrc/cuda/langevin.cu"
#include "arrays.h"

namespace lae {
namespace {

struct Variant {
  const char* name;
  bool mh;
  int64_t adaptation_columns;  // 0: none
  bool is_shared;              // one step size for all chains
  bool is_given;               // noise and uniforms
};

constexpr Variant kVariants[] = {
    {"own step sizes, Robbins-Monro", true, 2, false, false}, {"own, dual averaging", true, 6, false, false},
    {"shared, Robbins-Monro", true, 2, true, false},          {"shared, dual averaging", true, 6, true, false},
    {"shared, given noise", true, 0, true, true},             {"without MH", false, 6, false, false},
    {"without MH, given noise", false, 0, false, true},
};

// Inputs of all Langevin ops near a Gaussian target. From three chains on, one proposal has infinite energy, one a gradient
// with a NaN; and without Metropolis-Hastings, given noise makes one that is not finite itself.
template <typename T>
struct Problem {
  int64_t c, d, s;
  Variant variant;
  Array<T> phi, grad, proposal, proposal_grad, noise;
  Array<double> potential, proposal_potential, uniform, log_step_size, step_size, adaptation, log_alpha, acceptance;
  Array<int64_t> rng, next_rng, counters;
  Array<uint8_t> is_accepted, is_nonfinite, known_finite;

  Problem(int64_t n_chains, int64_t n, const Variant& v, int64_t offset)
      : c(n_chains), d(n), s(v.is_shared ? 1 : n_chains), variant(v), phi(c * d, offset), grad(c * d, offset),
        proposal(c * d, offset), proposal_grad(c * d, offset), noise(c * d, offset), potential(c),
        proposal_potential(c), uniform(c), log_step_size(s), step_size(s), adaptation(s * columns()), log_alpha(c),
        acceptance(c), rng(3), next_rng(3), counters(2 * c), is_accepted(c), is_nonfinite(c), known_finite(c) {
    std::mt19937_64 engine(c * 1000003 + d);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < c * d; ++i) {
      phi.host[i] = static_cast<T>(normal(engine));
      grad.host[i] = static_cast<T>(phi.host[i] + 0.1 * normal(engine));
      proposal.host[i] = static_cast<T>(phi.host[i] + 0.3 * normal(engine));
      proposal_grad.host[i] = static_cast<T>(proposal.host[i] + 0.1 * normal(engine));
      noise.host[i] = static_cast<T>(normal(engine));
    }
    for (int64_t k = 0; k < c; ++k) {
      potential.host[k] = normal(engine);
      uniform.host[k] = 0.5;
    }
    for (int64_t k = 0; k < s; ++k) {
      log_step_size.host[k] = -2 + 0.1 * normal(engine);
      step_size.host[k] = std::exp(log_step_size.host[k]);
      const double row[kDualColumns] = {0.574, 0.05, 4, 0.1, -2, -1};
      for (int64_t j = 0; j < columns(); ++j) adaptation.host[k * columns() + j] = row[j];
    }
    rng.host = {42, (int64_t{1} << 32) + 5, 0};
    for (int64_t k = 0; k < c; ++k) {  // about half of the proposals are accepted
      const double ratio = 0.25 * exact_sums(k, step_size.host[s == 1 ? 0 : k]).ratio;
      proposal_potential.host[k] = potential.host[k] + ratio + normal(engine);
    }
    if (c >= 3 && d > 0) {
      proposal_potential.host[1] = INFINITY;
      proposal_grad.host[3 * d - 1] = NAN;
      if (!variant.mh) noise.host[d / 2] = INFINITY;
    }
    for (auto* a : {&phi, &grad, &proposal, &proposal_grad, &noise}) a->upload();
    for (auto* a : {&potential, &proposal_potential, &uniform, &log_step_size, &step_size, &adaptation, &acceptance})
      a->upload();
    for (auto* a : {&rng, &counters}) a->upload();
    known_finite.upload();
  }

  int64_t columns() const { return variant.adaptation_columns > 0 ? variant.adaptation_columns : 2; }

  Sums exact_sums(int64_t k, double eta) const {
    Sums sums = {0.0, 0.0};
    for (int64_t i = k * d; i < (k + 1) * d; ++i) {
      sums.ratio += ratio_element(phi.host[i], proposal.host[i], grad.host[i], proposal_grad.host[i], eta);
      sums.probe += finite_probe(proposal.host[i], proposal_grad.host[i]);
    }
    return sums;
  }

  // The sums of the terms of log alpha without their signs: they bound how far apart two orders of summing may be.
  std::vector<double> scales() const {
    std::vector<double> result(c, 1.0);
    for (int64_t i = 0; i < c * d; ++i) {
      const double g = grad.host[i], h = proposal_grad.host[i], delta = static_cast<double>(proposal.host[i]) - phi.host[i];
      const double term = (std::abs(g) + std::abs(h)) * (2 * std::abs(delta) + std::abs(g) + std::abs(h));
      if (std::isfinite(term)) result[i / d] += term;
    }
    return result;
  }

  TransitionArgs<T> transition_args(bool on_device) {
    const bool adapts = variant.mh && variant.adaptation_columns > 0;
    return {c, d, s, phi.at(on_device), grad.at(on_device), proposal.at(on_device), proposal_grad.at(on_device),
            potential.at(on_device), proposal_potential.at(on_device), rng.at(on_device), log_step_size.at(on_device),
            adapts ? adaptation.at(on_device) : nullptr, columns(), counters.at(on_device),
            reinterpret_cast<bool*>(is_accepted.at(on_device)), log_alpha.at(on_device),
            variant.is_given ? noise.at(on_device) : nullptr, variant.is_given ? uniform.at(on_device) : nullptr,
            variant.mh, acceptance.at(on_device), reinterpret_cast<bool*>(known_finite.at(on_device))};
  }
  DecideArgs<T> decide_args(bool on_device) {
    return {c, d, s, phi.at(on_device), proposal.at(on_device), grad.at(on_device), proposal_grad.at(on_device),
            potential.at(on_device), proposal_potential.at(on_device), step_size.at(on_device), rng.at(on_device),
            variant.is_given ? uniform.at(on_device) : nullptr, variant.mh,
            reinterpret_cast<bool*>(is_accepted.at(on_device)), reinterpret_cast<bool*>(is_nonfinite.at(on_device)),
            log_alpha.at(on_device)};
  }
  ProposeArgs<T> propose_args(bool on_device) {
    return {c, d, s, phi.at(on_device), grad.at(on_device), step_size.at(on_device), rng.at(on_device),
            variant.is_given ? noise.at(on_device) : nullptr, proposal.at(on_device), next_rng.at(on_device)};
  }
};

// The same on the host, one element after another.

template <typename T>
Decision decide_on_host(const DecideArgs<T>& a, int64_t k) {
  Sums sums = {0.0, 0.0};
  for (int64_t i = k * a.n_elements; i < (k + 1) * a.n_elements; ++i) {
    sums.ratio += ratio_element(a.phi[i], a.proposal[i], a.grad[i], a.proposal_grad[i],
                                a.step_size[a.n_step_sizes == 1 ? 0 : k]);
    sums.probe += finite_probe(a.proposal[i], a.proposal_grad[i]);
  }
  const double u = a.uniform ? a.uniform[k] : accept_uniform(a.rng[kSeed], a.rng[kStep], static_cast<uint32_t>(k));
  return metropolis(a.potential[k], a.proposal_potential[k], sums, a.mh, log_uniform(u));
}

template <typename T>
void propose_on_host(const ProposeArgs<T>& a) {
  for (int64_t k = 0; k < a.n_chains; ++k)
    for (int64_t i = 0; i < a.n_elements; ++i) {
      const double eta = a.step_size[a.n_step_sizes == 1 ? 0 : k];
      const int64_t at = k * a.n_elements + i;
      T eps[4];
      normals4(a.rng[kSeed], a.rng[kStep], static_cast<uint32_t>(k), static_cast<uint32_t>(i / 4), eps);
      a.proposal[at] = proposal_element(a.phi[at], a.grad[at], static_cast<T>(eta), static_cast<T>(std::sqrt(2.0 * eta)),
                                        a.noise ? a.noise[at] : eps[i % 4]);
    }
  a.next_rng[kSeed] = a.rng[kSeed];
  a.next_rng[kStep] = a.rng[kStep] + 1;
  a.next_rng[kTicket] = 0;
}

// All decisions come first, then all proposals: that serves one shared step size as well as many.
template <typename T>
void transition_on_host(Problem<T>& p) {
  const TransitionArgs<T> a = p.transition_args(false);
  const DecideArgs<T> halves = p.decide_args(false);
  double acceptance = 0.0;
  for (int64_t k = 0; k < a.n_chains; ++k) {
    const Decision decision = decide_on_host(halves, k);
    a.is_accepted[k] = decision.is_accepted;
    a.log_alpha[k] = decision.log_alpha;
    a.counters[2 * k + kRejected] += !decision.is_accepted && !decision.is_nonfinite;
    a.counters[2 * k + kNonfinite] += decision.is_nonfinite;
    a.acceptance[k] += acceptance_probability(decision.log_alpha);
    acceptance += acceptance_probability(decision.log_alpha) / static_cast<double>(a.n_chains);
    if (decision.is_accepted) {
      a.potential[k] = a.proposal_potential[k];
      for (int64_t i = k * a.n_elements; i < (k + 1) * a.n_elements; ++i) {
        a.phi[i] = a.proposal[i];
        a.grad[i] = a.proposal_grad[i];
      }
    }
  }
  if (a.adaptation)
    for (int64_t k = 0; k < std::min(a.n_step_sizes, a.n_chains); ++k) {
      double* row = a.adaptation + k * a.adaptation_stride;
      Adaptation adaptation = load_adaptation(row, a.adaptation_stride);
      const double rate = a.adapts_jointly() ? acceptance : acceptance_probability(a.log_alpha[k]);
      a.log_step_size[k] = adapted_log_step_size(a.log_step_size[k], rate, adaptation);
      store_adaptation(adaptation, row);
    }
  for (int64_t k = 0; k < a.n_step_sizes; ++k) p.step_size.host[k] = std::exp(a.log_step_size[k]);
  propose_on_host(p.propose_args(false));
  a.rng[kStep] += 1;
}

template <typename T>
void compare_transition(Tally& tally, int64_t c, int64_t d, const Variant& variant, int64_t offset) {
  Problem<T> p(c, d, variant, offset);
  tally.name("transition %s [%lld, %lld] offset %lld, %s", sizeof(T) == 4 ? "float32" : "float64", (long long)c,
             (long long)d, (long long)offset, variant.name);
  std::vector<double> scale = p.scales();
  double largest = 1.0;
  for (double v : scale) largest = std::max(largest, v);
  for (int k = 0; k < (variant.mh ? 1 : 2); ++k) {  // unadjusted, the second step goes by what the first has recorded
    Cuda::transition(p.transition_args(true));
    check(cudaDeviceSynchronize(), tally.label);
    transition_on_host(p);
  }
  const bool records = !variant.mh && takes_grid(c, d);
  for (int64_t k = 0; k < c; ++k) {
    const T* row = p.proposal.host.data() + k * d;
    p.known_finite.host[k] = records && std::all_of(row, row + d, [](T v) { return std::isfinite(v); });
  }

  p.known_finite.compare(tally, "known_finite");
  p.is_accepted.compare(tally, "is_accepted");
  p.counters.compare(tally, "counters");
  p.rng.compare(tally, "rng");
  p.grad.compare(tally, "grad");
  p.potential.compare(tally, "potential");
  p.log_alpha.compare(tally, "log_alpha", [&](int64_t k) { return 1e-13 * scale[k]; });
  p.acceptance.compare(tally, "acceptance", [&](int64_t k) { return 1e-13 * scale[k]; });
  const auto step_bound = [&](int64_t k) { return 1e-12 * (p.s == 1 ? largest : scale[k]); };
  p.log_step_size.compare(tally, "log_step_size", step_bound);
  p.adaptation.compare(tally, "adaptation", [&](int64_t i) { return step_bound(i / p.columns()); });
  const auto proposal_bound = [&](int64_t i) {
    const double eta = p.step_size.host[p.s == 1 ? 0 : i / d], rounding = sizeof(T) == 4 ? 0x1p-23 : 0x1p-52;
    const double terms = std::abs(p.phi.host[i]) + eta * std::abs(p.grad.host[i]) + 7 * std::sqrt(2 * eta);
    return (4 * rounding + step_bound(i / d)) * terms;
  };
  p.proposal.compare(tally, "proposal", proposal_bound);
  p.phi.compare(tally, "phi", [&](int64_t i) { return variant.mh ? 0.0 : proposal_bound(i); });  // proposed here, then taken
}

template <typename T>
void compare_halves(Tally& tally, int64_t c, int64_t d, const Variant& variant, int64_t offset) {
  Problem<T> p(c, d, variant, offset);
  tally.name("decide %s [%lld, %lld] offset %lld, %s", sizeof(T) == 4 ? "float32" : "float64", (long long)c,
             (long long)d, (long long)offset, variant.name);
  const std::vector<double> scale = p.scales();
  Cuda::decide(p.decide_args(true));
  check(cudaDeviceSynchronize(), tally.label);
  for (int64_t k = 0; k < c; ++k) {
    const Decision decision = decide_on_host(p.decide_args(false), k);
    p.is_accepted.host[k] = decision.is_accepted;
    p.is_nonfinite.host[k] = decision.is_nonfinite;
    p.log_alpha.host[k] = decision.log_alpha;
  }
  p.is_accepted.compare(tally, "is_accepted");
  p.is_nonfinite.compare(tally, "is_nonfinite");
  p.log_alpha.compare(tally, "log_alpha", [&](int64_t k) { return 1e-13 * scale[k]; });

  std::snprintf(tally.label, 8, "propose");
  Cuda::propose(p.propose_args(true));
  check(cudaDeviceSynchronize(), tally.label);
  propose_on_host(p.propose_args(false));
  p.proposal.compare(tally, "proposal");
  p.next_rng.compare(tally, "next_rng");
}

template <typename T>
void compare_noise(Tally& tally, int64_t c, int64_t d, NoiseKind kind) {
  Array<T> out(c * d);
  Array<int64_t> rng(3);
  rng.host = {-5, (int64_t{1} << 32) + 5, 0};
  rng.upload();
  const uint64_t seed = rng.host[kSeed], step = rng.host[kStep];
  tally.name("noise of kind %d, %zu bytes each [%lld, %lld]", (int)kind, sizeof(T), (long long)c, (long long)d);
  Cuda::noise(NoiseArgs<T>{c, d, rng.device(), kind, out.device()});
  check(cudaDeviceSynchronize(), tally.label);
  for (int64_t at = 0; at < c * d; ++at) {
    const uint32_t chain = static_cast<uint32_t>(at / d), block = static_cast<uint32_t>(at % d / 4);
    T four[4];
    if constexpr (std::is_same_v<T, int64_t>) {
      const Words words = philox(seed, block, chain, step, kNormals);
      for (int k = 0; k < 4; ++k) four[k] = words.w[k];
    } else if (kind == kStandardNormals) {
      normals4(seed, step, chain, block, four);
    } else if (kind == kUniformPairs) {
      uniforms4(seed, step, chain, block, four);
    } else {
      four[0] = static_cast<T>(accept_uniform(seed, step, chain));
    }
    out.host[at] = four[at % d % 4];
  }
  out.compare(tally, "out");
}

template <typename T>
void compare_all(Tally& tally, bool is_quick) {
  // Every team of `transition`; one and two long chains (the whole grid), more of them, no chain; then both ends of each range.
  std::vector<std::pair<int64_t, int64_t>> sizes = {{1, 7},    {70, 9},   {5, 33},   {3, 65},  {1, 257},  {9, 513},
                                                    {1, 8193}, {2, 16388}, {3, 8200}, {3, 1001}, {1, 2047}, {2, 2052}, {0, 4},  {0, 600}, {3, 0}};
  if (!is_quick)
    sizes.insert(sizes.end(), {{1, 1},    {300, 8},   {300, 9},   {40, 33},    {40, 64},     {7, 65},   {1, 255}, {1, 256},
                               {9, 512},  {2, 2048},  {2, 2049}, {1, 8192},  {3, 9000},   {2, 20000},   {1, 70001}, {150, 8196}});
  for (const auto& [c, d] : sizes)
    for (const Variant& variant : kVariants) {
      const bool is_first = &variant == kVariants, is_large = c * d > 1000000;
      if (is_large && !is_first) continue;
      compare_transition<T>(tally, c, d, variant, 0);
      if (is_large || (is_quick && d > kMaxRowElements)) continue;
      if (is_first || variant.is_given) compare_transition<T>(tally, c, d, variant, 1);
      if (variant.adaptation_columns == 2) continue;
      for (int64_t offset : {0, 1}) compare_halves<T>(tally, c, d, variant, offset);  // the halves adapt nothing
    }
  for (const auto& [c, d] : sizes) {
    compare_noise<T>(tally, c, d, kStandardNormals);
    compare_noise<T>(tally, c, d, kUniformPairs);
  }
}

}  // namespace
}  // namespace lae

int main(int argc, char** argv) {
  const bool quick = is_quick(argc, argv);
  Tally tally;
  lae::compare_all<float>(tally, quick);
  lae::compare_all<double>(tally, quick);
  for (int64_t d : {1, 7, 255, 256, 257, 1000, 70001})
    if (!quick || d < 10000) lae::compare_noise<int64_t>(tally, 3, d, lae::kIntegers);
  lae::compare_noise<double>(tally, 1000, 1, lae::kAcceptUniforms);
  return tally.report("langevin");
}
