// The emulated tensor cores, and numbers of 16 bits, against what CUDA's manuals say of them.

#include "../../../csrc/cuda/halves.h"

#include "../../../csrc/cuda/launch.h"
#include "../arrays.h"

namespace lae {
namespace {

constexpr int kRows = 16, kColumns = 8, kInner = 16, kWarps = 2;

// out [warps, 16, 8] = c + a b^T by the lanes of each warp.
template <typename Format>
__global__ void multiply(const float* a, const float* b, const float* c, float* out) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32;
  a += warp * kRows * kInner, b += warp * kColumns * kInner, c += warp * kRows * kColumns, out += warp * kRows * kColumns;
  uint32_t x[4], w[2];
  float sum[4];
  for (int i = 0; i < 4; ++i) {
    const float* pair = a + (g + 8 * (i % 2)) * kInner + 2 * t + 8 * (i / 2);
    x[i] = Format::pack(pair[0], pair[1]);
    sum[i] = c[(g + 8 * (i / 2)) * kColumns + 2 * t + i % 2];
  }
  for (int i = 0; i < 2; ++i) {
    const float* pair = b + g * kInner + 2 * t + 8 * i;
    w[i] = Format::pack(pair[0], pair[1]);
  }
  Format::multiply(sum, x, w);
  for (int i = 0; i < 4; ++i) out[(g + 8 * (i / 2)) * kColumns + 2 * t + i % 2] = sum[i];
}

// Sums of small integers, which no rounding changes.
template <typename Format>
void compare_products(Tally& tally, const char* name) {
  tally.name("products of %s", name);
  Array<float> a(kWarps * kRows * kInner), b(kWarps * kColumns * kInner), c(kWarps * kRows * kColumns), out(c.size());
  std::mt19937 engine(1);
  for (auto* array : {&a, &b, &c})
    for (float& v : array->host) v = static_cast<float>(static_cast<int>(engine() % 201) - 100);
  for (auto* array : {&a, &b, &c}) array->upload();
  launch("multiply", {1, 32 * kWarps}, multiply<Format>, a.device(), b.device(), c.device(), out.device());
  for (int i = 0; i < out.size(); ++i) {
    const int warp = i / (kRows * kColumns), row = i / kColumns, column = i % kColumns;
    out.host[i] = c.host[i];
    for (int k = 0; k < kInner; ++k) out.host[i] += a.host[row * kInner + k] * b.host[(warp * kColumns + column) * kInner + k];
  }
  out.compare(tally, "out");
}

// c and 16 equal products, whose sum is cut off, not rounded.
void compare_truncated(Tally& tally) {
  tally.name("%s", "sums that are cut off");
  const float products[][3] = {  // c, a product, the sum
      {1, 0x1p-24f, 1}, {-1, 0x1p-24f, -1}, {1, 0x1p-23f, 1 + 0x1p-19f}, {0, 0x1p-24f, 0x1p-20f},
      {0x1p-20f, 0x1p-24f, 0x1p-19f}, {1, 0x1.8p-23f, 1 + 0x1p-19f}, {1.5, INFINITY, INFINITY}, {1, NAN, NAN},
      {0x1.FFFFFEp0f, 0x1p-23f, 2 + 0x1p-19f - 0x1p-22f}, {0x1p127f, 0, 0x1p127f}, {0, 0, 0},
  };
  for (const auto& [c, product, sum] : products) {
    Array<float> as(kRows * kInner), bs(kColumns * kInner), cs(kRows * kColumns), out(cs.size());
    std::fill(as.host.begin(), as.host.end(), product);
    std::fill(bs.host.begin(), bs.host.end(), 1.0f);
    std::fill(cs.host.begin(), cs.host.end(), c);
    as.upload(), bs.upload(), cs.upload();
    launch("multiply", {1, 32}, multiply<Bfloat16>, as.device(), bs.device(), cs.device(), out.device());
    std::fill(out.host.begin(), out.host.end(), sum);
    out.compare(tally, "out");
  }
}

template <typename Format>
__global__ void round(float* values) {
  float* pair = values + 2 * threadIdx.x;
  const float2 rounded = Format::unpack(Format::pack(pair[0], pair[1]));
  pair[0] = rounded.x, pair[1] = rounded.y;
}

// To the nearest number, ties to even.
template <typename Format>
void compare_rounding(Tally& tally, const char* name, std::vector<std::pair<float, float>> cases) {
  tally.name("rounding to %s", name);
  for (float x : {0.0f, -0.0f, 1.0f, -1.5f, INFINITY, -INFINITY, NAN}) cases.push_back({x, x});
  for (size_t i = 0, n = cases.size(); i < n; ++i) cases.push_back({-cases[i].first, -cases[i].second});
  Array<float> values(static_cast<int64_t>(cases.size()));
  for (size_t i = 0; i < cases.size(); ++i) values.host[i] = cases[i].first;
  values.upload();
  launch("round", {1, static_cast<unsigned>(cases.size() / 2)}, round<Format>, values.device());
  for (size_t i = 0; i < cases.size(); ++i) values.host[i] = cases[i].second;
  values.compare(tally, "rounded");
}

int run() {
  Tally tally;
  compare_products<Float16>(tally, "float16");
  compare_products<Bfloat16>(tally, "bfloat16");
  compare_truncated(tally);
  compare_rounding<Float16>(tally, "float16",
                            {{1 + 0x1p-11f, 1}, {1 + 0x1.02p-11f, 1 + 0x1p-10f}, {1 + 0x1.8p-10f, 1 + 0x1p-9f},
                             {0x1.FFFp0f, 2}, {65504, 65504}, {65519, 65504}, {65520, INFINITY}, {1e30f, INFINITY},
                             {0x1p-14f, 0x1p-14f}, {0x1.FFFp-15f, 0x1p-14f}, {0x1.8p-24f, 0x1p-23f}, {0x1p-25f, 0},
                             {0x1.01p-25f, 0x1p-24f}, {1e-30f, 0}, {0x1.554p-3f, 0x1.554p-3f}});
  compare_rounding<Bfloat16>(tally, "bfloat16",
                             {{1 + 0x1p-8f, 1}, {1 + 0x1.02p-8f, 1 + 0x1p-7f}, {1 + 0x1.8p-7f, 1 + 0x1p-6f},
                              {0x1.FFp0f, 2}, {0x1.FEp127f, 0x1.FEp127f}, {0x1.FFp127f, INFINITY}, {1e-30f, 0x1.44p-100f},
                              {0x1p-133f, 0x1p-133f}, {0x1p-134f, 0}});
  return tally.report("products");
}

}  // namespace
}  // namespace lae

int main() {
  return lae::run();
}
