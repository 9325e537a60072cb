// One pixel of each likelihood: -log p(x|z) in nats, its derivatives by the decoder's output and by the logarithm of
// the scale. The compilers for the CPU and for CUDA read this header; the loops around it only add up.
#pragma once

#include "fma.h"

namespace lae {

// The same bits as another type; std::bit_cast is not for the device.
template <typename To, typename From>
LAE_HD To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// What the decoder's output means; lae_fast/ops/energies.py has the same numbers.
enum Likelihood : int64_t { kBernoulli = 0, kGaussian = 1, kLogistic = 2 };

// exp(x) for x <= 0, to a unit in the last place. Below x = -87 (float64: -708) the result stays what it is there, near
// the smallest normal number, instead of 0. x = k log 2 + r with |r| <= log 2 / 2: adding the magic number rounds to the
// integer k and leaves k, with the bias of the exponent, in the low bits. In float32, where `fma` is one of fma.h, the
// polynomial is the one of its degree with the least relative error, 3e-9.
template <typename F>
LAE_HD float exp_negative(F fma, float x) {
  const float clamped = x < -87.0f ? -87.0f : x;  // a NaN stays a NaN
  const float magic = 12582912.0f + 127.0f, shifted = fma(clamped, 1.44269504088896341f, magic), k = shifted - magic;
  const float scale = bits_as<float>(bits_as<uint32_t>(shifted) << 23);
  const float r = fma(k, 1.90465421e-9f, fma(k, -0.693147182464599609375f, clamped));  // log 2 in two parts
  float p = fma(r, 0.0013814598646666331f, 0.0083687168797280689f);
  p = fma(r, p, 0.041668388045313948f);
  p = fma(r, p, 0.16666520631709498f);
  p = fma(r, p, 0.49999993447796487f);
  return (1.0f + fma(r * r, p, r)) * scale;
}
LAE_HD double exp_negative(double x) {
  const double clamped = x < -708.0 ? -708.0 : x;
  const double magic = 6755399441055744.0 + 1023.0, shifted = clamped * 1.44269504088896340736 + magic,
               k = shifted - magic;
  const double scale = bits_as<double>(bits_as<uint64_t>(shifted) << 52);
  const double r = (clamped - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
  double p = r * (1.0 / 479001600) + 1.0 / 39916800;
  p = r * p + 1.0 / 3628800;
  p = r * p + 1.0 / 362880;
  p = r * p + 1.0 / 40320;
  p = r * p + 1.0 / 5040;
  p = r * p + 1.0 / 720;
  p = r * p + 1.0 / 120;
  p = r * p + 1.0 / 24;
  p = r * p + 1.0 / 6;
  p = r * p + 0.5;
  return (1.0 + (r + (r * r) * p)) * scale;
}
template <typename F>
LAE_HD double exp_negative(F, double x) {
  return exp_negative(x);
}

// e / d, correctly rounded, for e in [0, 1] and d = 1 + e; r is 1 / d to 4 units in the last place. The compiler's own
// division does the same on a GPU, and looks for awkward numbers: there are none. Below e = 2^-24, where d is 1, that is
// plain; for all other e tests/every_logit.cpp tries it.
LAE_HD float divide_from(float r, float e, float d) {
  r = fmaf(r, fmaf(-d, r, 1.0f), r);
  const float q = e * r;
  return fmaf(r, fmaf(-d, q, e), q);
}
LAE_HD float divide_unit(float e, float d) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
  return divide_from(r, e, d);
#else
  return e / d;
#endif
}
LAE_HD double divide_unit(double e, double d) {
  return e / d;
}

// log(1 + e), for e in [0, 1] and u = e / (1 + e), to a few units in its last place: most pixels of an image are nearly
// certain, so their e is tiny. y = log(1 + e) has sinh y = (e + u) / 2 and cosh y = 1 + e u / 2: y / sinh y is a function
// of e u, and this is the polynomial of its degree with the least relative error, 2e-8.
template <typename F>
LAE_HD float log1p_unit(F fma, float e, float u) {
  const float v = e * u, sinh = 0.5f * (e + u);
  float p = fma(v, 0.00121815444f, -0.00699676294f);
  p = fma(v, p, 0.0333098285f);
  p = fma(v, p, -0.16666548f);
  return fma(sinh * v, p, sinh);
}
template <typename F>
LAE_HD double log1p_unit(F, double e, double) {
  return log_uniform(1.0 + e);  // 1 + e is rounded once, which does no harm here
}

template <typename T>
struct Pixel {
  T energy, derivative, log_scale_derivative;
};

// What all pixels share. `scale` is the scale of the likelihood; a Bernoulli has none.
struct PixelScale {
  double inverse;       // 1 / scale
  double constant;      // the term of a pixel's energy that depends on the scale alone
  double half_bin;      // half of one of the 256 grey levels, in units of scale
  double cosh_term;     // 2 cosh(half_bin)
  double exp_half_bin;  // exp(-half_bin)
  double slope;         // the derivative of `constant` by the logarithm of the scale
};

constexpr double kHalfBin = 0.5 / 255;

LAE_HD PixelScale pixel_scale(Likelihood likelihood, double log_scale) {
  PixelScale s = {1.0, 0.0, 0.0, 0.0, 0.0, 0.0};
  if (likelihood == kGaussian) {
    s.inverse = std::exp(-log_scale);
    s.constant = log_scale + 0.91893853320467274178;  // log(2 pi) / 2
    s.slope = 1.0;
  } else if (likelihood == kLogistic) {
    const double smallest = kHalfBin / 500;  // smaller scales count as this one: cosh stays finite
    s.inverse = log_scale < std::log(smallest) ? 1 / smallest : std::exp(-log_scale);
    const double b = s.half_bin = kHalfBin * s.inverse;
    s.constant = -std::log(-std::expm1(-2 * b));
    s.cosh_term = 2 * std::cosh(b);
    s.exp_half_bin = std::exp(-b);
    s.slope = 2 * b / std::expm1(2 * b);
  }
  return s;
}

// The output is a logit l. The energy is log(1 + exp(l)) - x l and its derivative sigmoid(l) - x, written without
// cancellation: with e = exp(-|l|), u = sigmoid(-|l|), and w = 1 - x or, where l is negative, x, they are |l| w + log(1 + e)
// and w - u or u - w.
template <typename F, typename T>
LAE_HD Pixel<T> bernoulli_pixel(F fma, T logit, T x) {
  const bool is_negative = logit < T(0);
  const T size = is_negative ? -logit : logit, w = is_negative ? x : T(1) - x;
  const T e = exp_negative(fma, -size), u = divide_unit(e, T(1) + e);
  const T energy = size * w + log1p_unit(fma, e, u), derivative = w - u;
  return {energy, is_negative ? -derivative : derivative, T(0)};
}

// The output is a mean m. The energy is (x - m)^2 / (2 scale^2); the caller adds the constant.
template <typename T>
LAE_HD Pixel<T> gaussian_pixel(T mean, T x, T inverse, T inverse_square) {
  const T residual = (x - mean) * inverse;
  const T square = residual * residual;
  return {T(0.5) * square, (mean - x) * inverse_square, -square};
}

// The output is a mean m, and x is one of k / 255. The energy is -log of the logistic distribution's mass in the bin of
// x; the first and the last bin are open to the outside. With a = |x - m| / scale, b half a bin in units of scale and
// A = exp(-a), an inner bin has the mass
//     sigmoid(a + b) - sigmoid(a - b) = exp(b - a) (1 - exp(-2b)) / (1 + 2 cosh(b) A + A^2),
// and an outer bin sigmoid(-t), where m lies t outside of the bin: one exp, one log and one division serve both.
// In float64 whatever the type of the tensors: in float32 cancellation would spoil the derivative.
LAE_HD Pixel<double> logistic_pixel(double mean, double x, const PixelScale& s) {
  const double d = (x - mean) * s.inverse, b = s.half_bin;
  const double first = x < kHalfBin ? 1.0 : 0.0, outer = first + (x > 1 - kHalfBin ? 1.0 : 0.0), inner = 1.0 - outer;
  const double sign = d < 0 ? -1.0 : 1.0, distance = sign * d;
  const double t = outer * ((1.0 - 2.0 * first) * d - b);  // 0 in an inner bin
  const double size = t < 0 ? -t : t;
  const double e = exp_negative(-(inner * distance + size));
  const double denominator = 1.0 + e * (outer + inner * (s.cosh_term + e));
  const double inverse = 1.0 / denominator;
  const double sigmoid = (t < 0 ? e : 1.0) * inverse;  // sigmoid(t)
  const double difference = (e * e - 1.0) * inverse;   // sigmoid(-a - b) - sigmoid(a - b)
  const double sum = (1.0 + e * (e + 2.0 * s.exp_half_bin)) * inverse;
  const double start = 0.5 * (t + size) + inner * (distance - b + s.constant);
  const double slope = outer * (2.0 * first - 1.0) * sigmoid + inner * sign * difference;
  return {start + log_uniform(denominator), slope * s.inverse,
          inner * (distance * difference + b * sum + s.slope) - t * sigmoid};
}

}  // namespace lae
