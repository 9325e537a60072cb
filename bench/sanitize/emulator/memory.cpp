// The memory of the emulated device, and whether threads may touch it as they do.
//
// Programs are compiled with -fsanitize=thread and linked without its library: the compiler calls the functions at the end
// of this file before every access, and these look for accesses beyond an array, reads of what nobody wrote, and races
// (order.cpp): two accesses by two threads, one of them a write, without a barrier between. A wrong value shows only if the
// threads take turns in an unlucky order; a race shows in every order.

#include "order.h"

#include <link.h>
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <string>

namespace emulator {
namespace {

constexpr size_t kDeviceBytes = 128 << 20, kAlignment = 256;
constexpr char kGarbage = '\xA5';  // what memory holds before anybody writes to it

enum State : char { kNobodys, kUnwritten, kWritten };

// Memory and what is known of it. An access of four bytes or more is kept by words, a smaller one by bytes: no kernel
// takes the same memory for both.
struct Region {
  const char* name;
  char* base;
  size_t size;
  bool is_shared;
  char* states;  // [size]
  Cell *words, *bytes;

  bool contains(const void* p, size_t n) const { return p >= base && static_cast<const char*>(p) + n <= base + size; }
  void reset(State state) {
    std::memset(base, kGarbage, size);
    std::memset(states, state, size);
  }
};

template <typename T>
T* reserve(size_t n) {  // zeros; pages that nobody touches take no memory
  void* memory = mmap(nullptr, n * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail("no address space for %zu bytes", n * sizeof(T));
  return static_cast<T*>(memory);
}

Region region_of(const char* name, char* base, size_t size, bool is_shared) {
  return {name, base, size, is_shared, reserve<char>(size + 1), reserve<Cell>(size / 4 + 1), reserve<Cell>(size + 1)};
}

// The __shared__ variables of kernels: cuda_runtime.h makes them thread_local, and no other variable of the program is,
// so they are its segment of such variables.
Region find_declared() {
  Region region = {};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* result) {
        for (int i = 0; i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data)
            *static_cast<Region*>(result) = region_of("shared memory", static_cast<char*>(info->dlpi_tls_data),
                                                      info->dlpi_phdr[i].p_memsz, true);
        return 1;  // the program comes first; its libraries do not matter
      },
      &region);
  return region;
}

Region device = region_of("device memory", reserve<char>(kDeviceBytes), kDeviceBytes, false);
Region declared = find_declared();
Region dynamic = region_of("dynamic shared memory", reserve<char>(kMaxDynamicShared), kMaxDynamicShared, true);

std::map<const char*, size_t> arrays;  // on the device, with their sizes
size_t allocated = 0;                  // bytes of the device, from its beginning on

// File and line of the code before an address.
std::string line_of(uintptr_t code) {
  char program[500] = "", command[600], line[300] = "";
  std::snprintf(line, sizeof line, "code %#zx", static_cast<size_t>(code));
  if (readlink("/proc/self/exe", program, sizeof program - 1) <= 0) return line;
  std::snprintf(command, sizeof command, "addr2line -s -e '%s' %#zx 2>/dev/null", program, static_cast<size_t>(code - 1));
  if (FILE* pipe = popen(command, "r")) {
    if (!std::fgets(line, sizeof line, pipe)) std::snprintf(line, sizeof line, "code %#zx", static_cast<size_t>(code));
    pclose(pipe);
  }
  line[std::strcspn(line, " \n")] = 0;
  return line;
}

struct Attempt {
  const char* at;
  size_t size;
  bool is_write;
  uintptr_t code;
};

[[noreturn]] void report(const Attempt& a, const Region* region, const std::string& what) {
  const uint3 &b = self->block->index, &t = self->index;
  std::string where = region ? region->name : "the host's memory";
  const auto next = arrays.upper_bound(a.at);
  if (region == &device && next != arrays.begin())
    where += " (byte " + std::to_string(a.at - std::prev(next)->first) + " of an array of " +
             std::to_string(std::prev(next)->second) + ")";
  fail("%s: thread (%u, %u, %u) of block (%u, %u, %u) %s %zu bytes of %s at %s", what.c_str(), t.x, t.y, t.z, b.x, b.y, b.z,
       a.is_write ? "writes" : "reads", a.size, where.c_str(), line_of(a.code).c_str());
}

void report_if_race(const Verdict& verdict, const Attempt& a, const Region& region) {
  if (!verdict) return;
  const unsigned n = threads_per_block();
  const Access& other = verdict->with;
  const char* who[] = {"thread number ", "the warp of thread number ", "the block of thread number "};
  report(a, &region, std::string("race with ") + who[other.span] + std::to_string(other.thread % n) + ", block number " +
                         std::to_string(other.thread / n) + ", which " + verdict->verb + " at " + line_of(other.code));
}

Region* region_at(const Attempt& a) {
  for (Region* region : {&device, &declared, &dynamic})
    if (region->contains(a.at, a.size)) return region;
  return nullptr;
}

// Returns the region of an access, if it has one: a thread may use what is private, and read its kernel's parameters, too.
Region* checked_region(const Attempt& a, bool is_aligned) {
  if (is_private(a.at)) return nullptr;
  Region* region = region_at(a);
  if (!region) {
    const char* parameters = static_cast<const char*>(current.parameters);
    if (!a.is_write && a.at >= parameters && a.at + a.size <= parameters + current.parameter_bytes) return nullptr;
    report(a, nullptr, "an address that is not the device's");
  }
  const size_t offset = a.at - region->base;
  if (is_aligned && reinterpret_cast<uintptr_t>(a.at) % a.size != 0) report(a, region, "a misaligned address");
  for (size_t i = offset; i < offset + a.size; ++i) {
    if (region->states[i] == kNobodys) report(a, region, "beyond an array");
    if (!a.is_write && region->states[i] == kUnwritten) report(a, region, "what nobody has written");
  }
  return region;
}

template <typename F>
void for_cells(const Region& region, const Attempt& a, F f) {
  const size_t offset = a.at - region.base;
  if (a.size < 4)
    for (size_t i = offset; i < offset + a.size; ++i) f(region.bytes[i]);
  else
    for (size_t i = offset / 4; i <= (offset + a.size - 1) / 4; ++i) f(region.words[i]);
}

void note(const void* p, size_t size, bool is_write, bool is_aligned, void* code) {
  if (!self || size == 0) return;  // the host may do what it likes
  const Attempt a = {static_cast<const char*>(p), size, is_write, reinterpret_cast<uintptr_t>(code)};
  const Region* region = checked_region(a, is_aligned);
  if (!region) return;
  if (is_write) std::memset(region->states + (a.at - region->base), kWritten, size);
  for_cells(*region, a, [&](Cell& cell) {
    report_if_race((is_write ? note_write : note_read)(cell, region->is_shared, a.code), a, *region);
  });
}

}  // namespace

void begin_block_memory() {
  declared.reset(kUnwritten);
  std::memset(dynamic.base, kGarbage, current.shared_bytes);
  std::memset(dynamic.states, kUnwritten, current.shared_bytes);
  std::memset(dynamic.states + current.shared_bytes, kNobodys, kMaxDynamicShared - current.shared_bytes);
}

void save_shared(Block& block) {
  block.shared.clear();
  for (const auto& [region, size] : {std::pair{&declared, declared.size}, {&dynamic, current.shared_bytes}})
    for (const char* part : {region->base, region->states}) block.shared.insert(block.shared.end(), part, part + size);
}

void restore_shared(Block& block) {
  const char* from = block.shared.data();
  for (const auto& [region, size] : {std::pair{&declared, declared.size}, {&dynamic, current.shared_bytes}})
    for (char* part : {region->base, region->states}) {
      std::memcpy(part, from, size);
      from += size;
    }
}

void begin_atomic(const void* address, size_t size, void* code) {
  const Attempt a = {static_cast<const char*>(address), size, true, reinterpret_cast<uintptr_t>(code)};
  if (const Region* region = checked_region({a.at, size, false, a.code}, true))
    for_cells(*region, a, [&](Cell& cell) { report_if_race(note_atomic(cell, region->is_shared), a, *region); });
  see_and_release(address);
}

void* dynamic_shared_memory() {
  return dynamic.base;
}

void* allocate(size_t size) {
  const size_t room = (size + 2 * kAlignment - 1) / kAlignment * kAlignment;  // nobody's bytes lie between two arrays
  if (arrays.empty()) allocated = kAlignment;
  if (size > kDeviceBytes || allocated + room > kDeviceBytes) return nullptr;
  char* memory = device.base + allocated;
  allocated += room;
  std::memset(memory, kGarbage, size);
  std::memset(device.states + (memory - device.base), kUnwritten, size);
  arrays[memory] = size;
  return memory;
}

void free(void* memory) {
  const auto found = arrays.find(static_cast<char*>(memory));
  if (found == arrays.end()) return;
  std::memset(device.states + (found->first - device.base), kNobodys, found->second);
  arrays.erase(found);
}

void mark_written(const void* memory, size_t size) {
  std::memset(device.states + (static_cast<const char*>(memory) - device.base), kWritten, size);
}

}  // namespace emulator

// What the compiler calls before an access.

#define NOTE(name, size, is_write, is_aligned) \
  void __tsan_##name(void* p) { emulator::note(p, size, is_write, is_aligned, __builtin_return_address(0)); }
#define NOTE_SIZE(size)                    \
  NOTE(read##size, size, false, true)      \
  NOTE(write##size, size, true, true)      \
  NOTE(volatile_read##size, size, false, true)  \
  NOTE(volatile_write##size, size, true, true)  \
  NOTE(unaligned_read##size, size, false, false) \
  NOTE(unaligned_write##size, size, true, false)

extern "C" {
NOTE_SIZE(1)
NOTE_SIZE(2)
NOTE_SIZE(4)
NOTE_SIZE(8)
NOTE_SIZE(16)
void __tsan_read_range(void* p, size_t n) {
  emulator::note(p, n, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) {
  emulator::note(p, n, true, false, __builtin_return_address(0));
}
void* __tsan_memcpy(void* to, const void* from, size_t n) {  // clang's, as the next two
  emulator::note(from, n, false, false, __builtin_return_address(0));
  emulator::note(to, n, true, false, __builtin_return_address(0));
  return std::memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  emulator::note(from, n, false, false, __builtin_return_address(0));
  emulator::note(to, n, true, false, __builtin_return_address(0));
  return std::memmove(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
  emulator::note(to, n, true, false, __builtin_return_address(0));
  return std::memset(to, value, n);
}
int __tsan_atomic32_fetch_add(volatile int* p, int value, int) {  // of the host: its reference counts
  return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
}
