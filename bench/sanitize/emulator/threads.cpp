// Threads, warps and blocks, and how they wait for each other.

#include "internal.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

uint3 threadIdx, blockIdx, blockDim, gridDim;  // cuda_runtime.h shows them to kernels as constants

namespace emulator {

Thread* self = nullptr;
Launch current;
Time now = 1;

namespace {

constexpr size_t kStack = 64 << 10;
constexpr uint64_t kCanary = 0x5AFE57AC5AFE57AC;  // the last word of a stack: nobody may get there

std::vector<Thread> threads;
std::vector<Warp> warps;
std::vector<Block> blocks;
char* stacks = nullptr;
size_t n_stacks = 0;
Context host;
unsigned n_live, n_waiting_for_grid;
size_t n_runnable;
const bool is_reversed = std::getenv("EMULATOR_REVERSED") != nullptr;

// Calls f(0) .. f(n - 1), in the order that is tried.
template <typename F>
void in_turn(size_t n, F f) {
  for (size_t i = 0; i < n; ++i) f(is_reversed ? n - 1 - i : i);
}

const char* base_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

// Two calls in one line are one place: a compiler may copy a call, and templates do.
bool is_same(const Place& a, const Place& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

std::string listed(const uint3& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

void release(Thread& t) {
  t.waits = Waits::kNot;
  ++n_runnable;
}

void complete_block(Block& b) {
  const Thread* first = nullptr;
  ++now;
  for (unsigned i = 0; i < threads_per_block(); ++i) {
    Thread& t = threads[b.first_thread + i];
    if (t.waits != Waits::kBlock) continue;
    if (!first) first = &t;
    if (!is_same(t.place, first->place))
      fail("divergence: in block %s, thread %u waits at %s and thread %u at %s", listed(b.index).c_str(),
           first->number - b.first_thread, name_of(first->place), i, name_of(t.place));
    if (t.seen.time > b.seen.time) b.seen = t.seen;
    release(t);
  }
  b.n_waiting = 0;
  b.time = now;
}

void complete_grid() {
  all_is_done(++now);
  for (Thread& t : threads)
    if (t.waits == Waits::kGrid) release(t);
  n_waiting_for_grid = 0;
}

// Whether all lanes that the thread's mask names wait at its place, for the same lanes.
bool is_complete(const Thread& t) {
  if (t.warp->n_waiting < std::popcount(t.mask)) return false;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(t.mask >> lane & 1)) continue;
    if (lane >= t.warp->n_lanes) return false;
    const Thread& other = threads[t.warp->first_thread + lane];
    if (other.waits != t.waits || other.mask != t.mask || !is_same(other.place, t.place)) return false;
  }
  return true;
}

// Calls f for the threads that `mask` names.
template <typename F>
void for_lanes(const Warp& w, unsigned mask, F f) {
  for (unsigned lane = 0; lane < w.n_lanes; ++lane)
    if (mask >> lane & 1) f(threads[w.first_thread + lane]);
}

void stop() {
  switch_to(self->context, host);
}

void wait(Waits waits, unsigned mask, const Place& place) {
  self->waits = waits;
  self->mask = mask;
  self->place = place;
  --n_runnable;
}

void wait_for_lanes(Waits waits, unsigned mask, const Place& place) {
  wait(waits, mask, place);
  ++self->warp->n_waiting;
}

// What a thread of a launch begins and ends with.
void entry() {
  current.body(current.parameters);
  Thread& t = *self;
  t.waits = Waits::kDone;
  --n_runnable;
  --n_live;
  Block& b = *t.block;
  if (--b.n_live > 0 && b.n_waiting == b.n_live) complete_block(b);
  if (n_live > 0 && n_waiting_for_grid == n_live) complete_grid();
  stop();
  std::abort();  // nobody continues it
}

void resume(Thread& t) {
  self = &t;
  threadIdx = t.index;
  blockIdx = t.block->index;
  switch_to(host, t.context);
  self = nullptr;
}

// Each lane in turn, until all of the warp wait.
void run_warp(const Warp& w) {
  for (bool goes_on = true; goes_on;) {
    goes_on = false;
    in_turn(w.n_lanes, [&](size_t lane) {
      Thread& t = threads[w.first_thread + lane];
      if (t.waits != Waits::kNot) return;
      goes_on = true;
      resume(t);
    });
  }
}

bool is_runnable(const Block& b) {
  const auto begin = threads.begin() + b.first_thread;
  return std::any_of(begin, begin + threads_per_block(), [](const Thread& t) { return t.waits == Waits::kNot; });
}

void run_block(Block& b) {
  const size_t n_warps = (threads_per_block() + 31) / 32, first = b.first_thread / threads_per_block() * n_warps;
  while (is_runnable(b)) in_turn(n_warps, [&](size_t w) { run_warp(warps[first + w]); });
}

[[noreturn]] void report_deadlock() {
  std::map<std::string, int> counts;
  for (const Thread& t : threads) {
    const char* what = t.waits == Waits::kBlock     ? "wait for their block at "
                       : t.waits == Waits::kWarp    ? "wait for lanes of their warp at "
                       : t.waits == Waits::kShuffle ? "exchange values with lanes of their warp at "
                       : t.waits == Waits::kGrid    ? "wait for the grid at "
                                                    : "have returned";
    ++counts[std::string(what) + (t.waits == Waits::kDone ? "" : name_of(t.place))];
  }
  std::string text;
  for (const auto& [what, n] : counts) text += (text.empty() ? "" : ", ") + std::to_string(n) + " " + what;
  fail("deadlock: of the threads from block %s on, %s", listed(blocks[0].index).c_str(), text.c_str());
}

// Stacks once for all launches. The pages that nobody touches take no memory.
void need_stacks(size_t n) {
  if (n <= n_stacks) return;
  if (stacks) munmap(stacks, n_stacks * kStack);
  void* memory = mmap(nullptr, n * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("no memory for %zu stacks", n);
  stacks = static_cast<char*>(memory);
  n_stacks = n;
  for (size_t i = 0; i < n; ++i) std::memcpy(stacks + i * kStack, &kCanary, sizeof kCanary);
}

// Runs the blocks from `first_block` on that are on the device at the same time.
void run_blocks(unsigned first_block, unsigned n) {
  const unsigned size = threads_per_block(), n_warps = (size + 31) / 32;
  threads.resize(n * size);
  warps.resize(n * n_warps);
  blocks.resize(n);
  n_live = n * size;
  n_runnable = n_live;
  n_waiting_for_grid = 0;
  need_stacks(threads.size());
  for (unsigned k = 0; k < n; ++k) {
    const unsigned b = first_block + k;
    const dim3& g = current.grid;
    blocks[k] = {{b % g.x, b / g.x % g.y, b / g.x / g.y}, b, k * size, size, 0, 0, {}, {}};
    for (unsigned w = 0; w < n_warps; ++w)
      warps[k * n_warps + w] = {k * size + 32 * w, std::min(32u, size - 32 * w), 0, 0};
    for (unsigned i = 0; i < size; ++i) {
      const dim3& d = current.block;
      Thread& t = threads[k * size + i];
      t.index = {i % d.x, i / d.x % d.y, i / d.x / d.y};
      t.number = b * size + i;
      t.lane = i % 32;
      t.block = &blocks[k];
      t.warp = &warps[k * n_warps + i / 32];
      t.waits = Waits::kNot;
      t.fence_time = t.mask_time = t.fenced_time = 0;
      t.offered = t.seen = {};
      prepare(t.context, stacks + (k * size + i) * kStack, kStack, entry);
    }
  }
  begin_block_memory();
  if (n > 1)
    for (Block& b : blocks) save_shared(b);
  while (n_runnable > 0)  // the blocks of a cooperative launch take turns at the barriers of the grid
    in_turn(n, [&](size_t k) {
      if (!is_runnable(blocks[k])) return;
      if (n > 1) restore_shared(blocks[k]);
      run_block(blocks[k]);
      if (n > 1) save_shared(blocks[k]);
    });
  if (n_live > 0) report_deadlock();
  for (size_t i = 0; i < threads.size(); ++i)
    if (std::memcmp(stacks + i * kStack, &kCanary, sizeof kCanary) != 0)
      fail("a thread needs more than the %zu bytes of its stack", kStack);
}

}  // namespace

unsigned threads_per_block() {
  return current.block.x * current.block.y * current.block.z;
}

bool is_private(const void* address) {
  if (address >= stacks && address < stacks + n_stacks * kStack) return true;
  for (const uint3* v : {&threadIdx, &blockIdx, &blockDim, &gridDim})  // clang++ does not take them for constants
    if (address >= v && address < v + 1) return true;
  return false;
}

const char* name_of(const Place& place) {
  static char names[4][200];  // as many as one message may need
  static int next = 0;
  char* name = names[next++ % 4];
  std::snprintf(name, sizeof names[0], "%s:%u", base_name(place.file), place.line);
  return name;
}

namespace {

// The barrier that is left out, EMULATOR_WITHOUT=FILE:LINE. A program that has never come to it says nothing about it, and fails.
struct LeftOut {
  const char* name = std::getenv("EMULATOR_WITHOUT");
  bool is_reached = false;

  ~LeftOut() {
    if (!name || is_reached) return;
    std::printf("FAILED: EMULATOR_WITHOUT=%s, where this program reaches no barrier and no fence\n", name);
    std::fflush(stdout);
    std::_Exit(2);
  }
} left_out;

}  // namespace

bool is_left_out(const Place& place) {
  if (!left_out.name || std::strcmp(left_out.name, name_of(place)) != 0) return false;
  return left_out.is_reached = true;
}

namespace {
std::map<const void*, size_t> allowed_shared;
}

bool allow_shared(const void* kernel, size_t bytes) {
  if (bytes > kMaxDynamicShared) return false;
  allowed_shared[kernel] = bytes;
  return true;
}

bool run(const Launch& launch) {
  const uint64_t size = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
  const dim3& g = launch.grid;
  if (size == 0 || size > 1024 || launch.block.z > 64) return false;
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.x > 0x7FFFFFFF || g.y > 65535 || g.z > 65535) return false;
  if (launch.shared_bytes > std::max(allowed_shared[launch.kernel], size_t{48} << 10)) return false;
  if (launch.parameter_bytes > kMaxParameterBytes) return false;
  const uint64_t n_blocks = uint64_t{g.x} * g.y * g.z;
  if (launch.is_cooperative && n_blocks > kMultiprocessors * kBlocksEach) return false;
  current = launch;
  ::blockDim = {launch.block.x, launch.block.y, launch.block.z};
  ::gridDim = {g.x, g.y, g.z};
  all_is_done(++now);
  if (launch.is_cooperative)
    run_blocks(0, static_cast<unsigned>(n_blocks));
  else
    in_turn(n_blocks, [&](size_t b) { run_blocks(static_cast<unsigned>(b), 1); });
  return true;
}

void wait_for_block(Place place) {
  if (is_left_out(place)) return;
  Block& b = *self->block;
  wait(Waits::kBlock, 0, place);
  if (++b.n_waiting == b.n_live)
    complete_block(b);
  else
    stop();
}

void wait_for_grid(Place place) {
  if (is_left_out(place)) return;
  if (!current.is_cooperative) fail("a barrier of the grid at %s, in a launch that is not cooperative", name_of(place));
  wait(Waits::kGrid, 0, place);
  if (++n_waiting_for_grid == n_live)
    complete_grid();
  else
    stop();
}

void wait_for_warp(unsigned mask, Place place) {
  if (is_left_out(place)) return;
  Warp& w = *self->warp;
  const unsigned all = w.n_lanes == 32 ? 0xFFFFFFFFu : (1u << w.n_lanes) - 1;
  if (mask == 0xFFFFFFFFu) mask = all;  // lanes that the block lacks count as having returned
  if (!(mask >> self->lane & 1)) fail("lane %u at %s is not among the lanes %#x", self->lane, name_of(place), mask);
  wait_for_lanes(Waits::kWarp, mask, place);
  if (!is_complete(*self)) return stop();
  ++now;
  w.n_waiting -= std::popcount(mask);
  for_lanes(w, mask, [&](Thread& t) {
    t.mask_time = now;
    t.synced_mask = mask;
    release(t);
  });
  if (mask == all) w.time = now;
}

namespace {

// Returns what the 32 lanes gave.
const char* exchange(const void* own, size_t size, unsigned mask, const Place& place) {
  if (size > sizeof self->given) fail("%zu bytes a lane at %s are too many", size, name_of(place));
  if (!(mask >> self->lane & 1)) fail("lane %u at %s is not among the lanes %#x", self->lane, name_of(place), mask);
  std::memcpy(self->given, own, size);
  wait_for_lanes(Waits::kShuffle, mask, place);
  if (!is_complete(*self)) {
    stop();
    return self->got;
  }
  char values[sizeof self->got];
  std::memset(values, 0, 32 * size);
  for_lanes(*self->warp, mask, [&](Thread& t) { std::memcpy(values + t.lane * size, t.given, size); });
  for_lanes(*self->warp, mask, [&](Thread& t) {
    std::memcpy(t.got, values, 32 * size);
    release(t);
  });
  self->warp->n_waiting -= std::popcount(mask);
  return self->got;
}

}  // namespace

void gather(const void* own, void* all, size_t size, unsigned mask, Place place) {
  std::memcpy(all, exchange(own, size, mask, place), 32 * size);
}

void shuffle(void* value, size_t size, unsigned lane, unsigned mask, Place place) {
  if (!(mask >> lane & 1))
    fail("lane %u at %s takes a value from lane %u, which is not among the lanes %#x", self->lane, name_of(place), lane,
         mask);
  std::memcpy(value, exchange(value, size, mask, place) + lane * size, size);
}

void fence(Place place) {
  if (is_left_out(place)) return;
  self->fence_time = ++now;
  self->fenced_time = self->block->time;
  self->seen = self->offered;
}

}  // namespace emulator
