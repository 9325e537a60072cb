// One element of the Langevin proposal and of the Metropolis-Hastings ratio, one decision, one step size's adaptation.
// The compilers for the CPU and for CUDA read this header; the loops around it only add up.
#pragma once

#include "philox.h"

namespace lae {

// Columns of `rng` int64 [3], of `adaptation` float64 [S, 2 or 6] and of `counters` int64 [C, 2].
enum { kSeed = 0, kStep = 1, kTicket = 2 };
enum { kTarget = 0, kRate = 1, kCount = 2, kError = 3, kAverage = 4, kCentre = 5, kDualColumns = 6 };
enum { kRejected = 0, kNonfinite = 1 };

// The noise of one chain in one transition.
struct Stream {
  uint64_t seed, step;
  uint32_t chain;
};

// phi' = phi - eta grad + sqrt(2 eta) eps
template <typename T>
LAE_HD T proposal_element(T phi, T grad, T eta, T noise_scale, T eps) {
  return phi - eta * grad + noise_scale * eps;
}

// log alpha is V - V' plus a quarter of the sum of these over the elements. The sum is the textbook ratio of the two
// Gaussian proposal densities, without a division by eta and exact in the stored values.
template <typename T>
LAE_HD double ratio_element(T phi, T proposal, T grad, T proposal_grad, double eta) {
  const double g = grad, h = proposal_grad;
  const double delta = static_cast<double>(proposal) - static_cast<double>(phi);
  return (g + h) * (2.0 * delta + eta * (g - h));
}

// The sum as a straight line in eta, for who adds up before eta is known: ratio = 2 moved + eta pulled.
struct RatioLine {
  double moved;   // sum of (g + h) (phi' - phi); NaN if a proposal or its gradient is not finite
  double pulled;  // sum of (g + h) (g - h)
};

template <typename T>
LAE_HD void add_element(RatioLine& line, T phi, T proposal, T grad, T proposal_grad) {
  const double g = grad, h = proposal_grad;
  line.moved = std::fma(g + h, static_cast<double>(proposal) - static_cast<double>(phi), line.moved);
  line.pulled = std::fma(g + h, g - h, line.pulled);
}

// 0 for finite values, NaN otherwise: the sum over a chain tells whether any value is not finite.
template <typename T>
LAE_HD double finite_probe(T proposal, T proposal_grad) {
  return 0.0 * static_cast<double>(proposal) + 0.0 * static_cast<double>(proposal_grad);
}

// The sums over the elements of one chain.
struct Sums {
  double ratio;
  double probe;
};

struct Decision {
  bool is_accepted;
  bool is_nonfinite;
  double log_alpha;  // -inf when the proposal is outside the support or not finite
};

// A proposal of infinite energy is an ordinary rejection. Anything else that is not finite is counted separately.
LAE_HD Decision metropolis(double potential, double proposal_potential, Sums sums, bool mh, double log_u) {
  const double log_alpha = mh ? potential - proposal_potential + 0.25 * sums.ratio : 0.0;
  const bool is_outside = proposal_potential == INFINITY;
  const bool is_finite =
      std::isfinite(proposal_potential) && std::isfinite(log_alpha) && sums.probe == 0.0;
  Decision d;
  d.is_nonfinite = !is_outside && !is_finite;
  d.log_alpha = is_finite ? log_alpha : -INFINITY;
  d.is_accepted = is_finite && log_u <= d.log_alpha;
  return d;
}

LAE_HD double acceptance_probability(double log_alpha) {
  return log_alpha < 0.0 ? std::exp(log_alpha) : 1.0;
}

// The row of `adaptation` that belongs to one step size, in registers.
struct Adaptation {
  double v[kDualColumns];
  bool is_dual;
};

LAE_HD Adaptation load_adaptation(const double* row, int64_t n_columns) {
  Adaptation a = {};
  a.is_dual = n_columns == kDualColumns;
  for (int k = 0; k < kDualColumns; ++k)
    if (k < n_columns) a.v[k] = row[k];
  return a;
}
LAE_HD void store_adaptation(const Adaptation& a, double* row) {
  if (!a.is_dual) return;  // Robbins and Monro's rule has no state
  for (int k = kCount; k <= kAverage; ++k) row[k] = a.v[k];
}

// Two columns: Robbins and Monro, log eta += rate (acceptance - target). Six columns: dual averaging (Hoffman and
// Gelman, 2014, section 3.2.1; t0 = 10, kappa = 3/4, gamma = 1 / rate). A rate of 0 keeps the step size.
LAE_HD double adapted_log_step_size(double log_step_size, double acceptance, Adaptation& a) {
  const double rate = a.v[kRate], error = a.v[kTarget] - acceptance;
  if (rate == 0.0) return log_step_size;
  if (!a.is_dual) return log_step_size - rate * error;
  const double t = a.v[kCount] + 1.0, root = std::sqrt(t);
  a.v[kCount] = t;
  a.v[kError] += (error - a.v[kError]) / (t + 10.0);
  const double next = a.v[kCentre] - rate * root * a.v[kError];
  a.v[kAverage] += (next - a.v[kAverage]) / (root * std::sqrt(root));
  return next;
}

}  // namespace lae
