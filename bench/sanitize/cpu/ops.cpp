// Calls every CPU op as torch would, at ragged sizes and at none, from one thread and from several, while a sanitizer
// watches; cpu.sh builds it. What the ops return must not depend on the number of threads: the program returns 1 if it does.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

#include "dense_ops.h"
#include "energy_ops.h"
#include "langevin_ops.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Shape;
using torch::stable::Tensor;
using lae::DenseOps;
using lae::EnergyOps;
using lae::LangevinOps;

struct Backend {
  using Guard = lae::NoGuard;
};

// A registered op, by its name and the type of its function.
template <typename F>
F op(const char* name, F) {
  return std::any_cast<F>(torch::stable::detail::StableLibrary::ops().at(name));
}
#define OP(Group, name) op(#name, decltype(&Group<Backend>::name){})

// Values that depend on the seed alone, and a digest of all that the ops have written.
struct Values {
  std::mt19937_64 engine;
  uint64_t digest = 14695981039346656037u;

  explicit Values(uint64_t seed) : engine(seed) {}

  Tensor floats(const Shape& shape, ScalarType type, double shift = 0.0, double scale = 1.0) {
    std::normal_distribution<double> normal(shift, scale);
    Tensor t(shape, type);
    for (int64_t i = 0; i < t.numel(); ++i) {
      if (type == ScalarType::Float)
        static_cast<float*>(t.data_ptr())[i] = static_cast<float>(normal(engine));
      else
        static_cast<double*>(t.data_ptr())[i] = normal(engine);
    }
    return t;
  }
  Tensor doubles(const Shape& shape, double shift = 0.0, double scale = 1.0) {
    return floats(shape, ScalarType::Double, shift, scale);
  }
  Tensor images(const Shape& shape, ScalarType type) {
    Tensor t = floats(shape, type);
    for (int64_t i = 0; i < t.numel(); ++i) {
      const double level = static_cast<double>(engine() % 256) / 255;
      if (type == ScalarType::Float)
        static_cast<float*>(t.data_ptr())[i] = static_cast<float>(level);
      else
        static_cast<double*>(t.data_ptr())[i] = level;
    }
    return t;
  }
  static Tensor zeros(const Shape& shape, ScalarType type) {
    Tensor t(shape, type);
    if (t.numel() > 0) std::memset(t.data_ptr(), 0, t.numel() * t.element_size());
    return t;
  }
  static Tensor rng() {
    Tensor t({3}, ScalarType::Long);
    const int64_t values[] = {42, (int64_t{1} << 32) + 5, 0};
    std::memcpy(t.data_ptr(), values, sizeof values);
    return t;
  }

  template <typename... Tensors>
  void read(const Tensors&... tensors) {
    (read_one(tensors), ...);
  }
  template <typename... Tensors>
  void read(const std::tuple<Tensors...>& tensors) {
    std::apply([&](const auto&... each) { read(each...); }, tensors);
  }
  void read_one(const Tensor& t) {
    const auto* bytes = static_cast<const unsigned char*>(t.data_ptr());
    const int64_t n = t.numel() * static_cast<int64_t>(t.element_size());
    for (int64_t i = 0; i < n; ++i) digest = (digest ^ bytes[i]) * 1099511628211u;
  }
};

void langevin(Values& v, int64_t c, int64_t d, ScalarType type, int64_t s, int64_t columns, bool mh, bool is_given) {
  const Tensor phi = v.floats({c, d}, type), grad = v.floats({c, d}, type), proposal = v.floats({c, d}, type);
  const Tensor new_grad = v.floats({c, d}, type), potential = v.doubles({c}), new_potential = v.doubles({c});
  const Tensor step_size = v.doubles({s}, 0.1, 0.01), log_step_size = v.doubles({s}, -2.0, 0.1), rng = v.rng();
  const Tensor counters = v.zeros({c, 2}, ScalarType::Long), accepted = v.zeros({c}, ScalarType::Bool);
  const Tensor log_alpha = v.zeros({c}, ScalarType::Double), acceptance = v.zeros({c}, ScalarType::Double);
  const Tensor known_finite = v.zeros({c}, ScalarType::Bool);
  std::optional<Tensor> noise, uniform, adaptation;
  if (is_given) noise = v.floats({c, d}, type), uniform = v.doubles({c}, 0.5, 0.05);
  if (columns > 0) adaptation = v.doubles({s, columns}, 0.5, 0.01);

  v.read(OP(LangevinOps, propose)(phi, grad, step_size, rng, noise));
  v.read(OP(LangevinOps, decide)(phi, proposal, potential, new_potential, grad, new_grad, step_size, rng, mh, uniform));
  OP(LangevinOps, transition)(phi, potential, grad, proposal, rng, log_step_size, counters, accepted, log_alpha,
                              adaptation, new_potential, new_grad, mh, noise, uniform, acceptance, known_finite);
  v.read(phi, potential, grad, proposal, rng, log_step_size, counters, accepted, log_alpha, acceptance, known_finite);
  if (adaptation) v.read(*adaptation);
}

void noise(Values& v, int64_t c, int64_t d, ScalarType type) {
  for (const int64_t kind : {lae::kIntegers, lae::kUniformPairs, lae::kStandardNormals, lae::kAcceptUniforms}) {
    const ScalarType own = kind == lae::kIntegers ? ScalarType::Long
                           : kind == lae::kAcceptUniforms ? ScalarType::Double : type;
    const Tensor out({c, kind == lae::kAcceptUniforms ? 1 : d}, own);
    OP(LangevinOps, noise)(out, v.rng(), kind);
    v.read(out);
  }
}

void energy(Values& v, int64_t r, int64_t n, int64_t d, ScalarType type) {
  for (const int64_t kind : {lae::kBernoulli, lae::kGaussian, lae::kLogistic}) {
    const Tensor output = v.floats({r, d}, type), x = v.images({n, d}, type);
    std::optional<Tensor> log_scale;
    if (kind != lae::kBernoulli) log_scale = v.floats({}, type, -2.0, 0.1);
    v.read(OP(EnergyOps, energy)(output, x, kind, log_scale));
    v.read(OP(EnergyOps, energy_)(output, x, kind, log_scale));
    v.read(output);
  }
  if (!op("in_unit_range", static_cast<bool (*)(Tensor)>(nullptr))(v.images({n, d}, type)))
    throw std::logic_error("in_unit_range: False for values in [0, 1]");
}

void dense(Values& v, int64_t n, int64_t d, ScalarType type) {
  const Tensor y = v.floats({n, d}, type), weight = v.floats({d}, type), bias = v.floats({d}, type);
  const auto [out, rstd] = OP(DenseOps, norm_relu)(y, weight, bias, 1e-5);
  const Tensor grad = v.floats({n, d}, type);
  const Tensor y_grad = OP(DenseOps, norm_relu_backward)(grad, out, y, rstd, weight);
  v.read(y, out, rstd, y_grad, OP(DenseOps, norm_relu_sums)(grad, out, y, y_grad));
}

void keep(Values& v, int64_t n) {
  std::vector<Tensor> latest, previous;
  for (const int64_t d : {0, 1, 7, 300, 70001})
    for (auto* list : {&latest, &previous}) list->push_back(v.floats({n, d}, ScalarType::Float));
  const Tensor accepted = v.zeros({n}, ScalarType::Bool);
  for (int64_t i = 0; i < n; i += 3) static_cast<bool*>(accepted.data_ptr())[i] = n > 1;
  OP(DenseOps, keep)(latest, previous, accepted);
  for (const Tensor& t : latest) v.read(t);
}

uint64_t everything() {
  Values v(1);
  for (const ScalarType type : {ScalarType::Float, ScalarType::Double}) {
    const int64_t chains[][2] = {{1, 1}, {3, 7}, {5, 8}, {130, 12}, {2, 255}, {3, 257}, {2, 8192}, {2, 20003}, {0, 4}, {3, 0}};
    for (const auto& [c, d] : chains) {
      langevin(v, c, d, type, c, 2, true, false);
      langevin(v, c, d, type, c, 6, true, true);
      langevin(v, c, d, type, 1, 6, true, false);
      langevin(v, c, d, type, 1, 0, false, false);
      noise(v, c, d, type);
    }
    const int64_t pixels[][3] = {{1, 1, 1}, {6, 3, 255}, {4, 2, 784}, {70, 35, 257}, {0, 4, 5}, {0, 0, 5}, {2, 1, 0}};
    for (const auto& [r, n, d] : pixels) energy(v, r, n, d, type);
    const int64_t rows[][2] = {{1, 1}, {3, 7}, {33, 16}, {70, 257}, {0, 5}, {4, 0}};
    for (const auto& [n, d] : rows) dense(v, n, d, type);
  }
  for (const int64_t n : {1, 7, 64}) keep(v, n);
  return v.digest;
}

}  // namespace

int main() {
  const uint64_t alone = everything();
  torch::stable::n_threads = 3;
  const uint64_t shared = everything();
  uint64_t beside[2] = {};
  {
    std::vector<std::jthread> callers;
    for (uint64_t& digest : beside) callers.emplace_back([&digest] { digest = everything(); });
  }
  const bool is_same = alone == shared && alone == beside[0] && alone == beside[1];
  std::printf("%s: digest %016llx, three threads %016llx, two callers at once %016llx and %016llx\n",
              is_same ? "ok" : "WRONG", (unsigned long long)alone, (unsigned long long)shared,
              (unsigned long long)beside[0], (unsigned long long)beside[1]);
  return !is_same;
}
