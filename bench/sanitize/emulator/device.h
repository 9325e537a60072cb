// What the emulated device does for kernels and programs; cuda_runtime.h gives it CUDA's names.
//
// Every thread is a fiber, and blocks run one after the other (those of a cooperative launch: all at once). A warp runs as
// far as it can before the next one may. Every access to memory is seen, too (memory.cpp). What would go wrong on a GPU, or
// could, ends the program with exit code 1 and one line, FAULT, that says which threads did what, and where.
//
// EMULATOR_REVERSED=1    blocks, warps and lanes take their turns from the last to the first
// EMULATOR_WITHOUT=F:L   without the barrier or the fence in line L of file F, as if it had been deleted
#pragma once

#include <cstddef>
#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

struct Place {  // of a call in a kernel; std::source_location, which not every clang++ has
  const char* file = nullptr;
  unsigned line = 0;
  static constexpr Place current(const char* file = __builtin_FILE(), unsigned line = __builtin_LINE()) {
    return {file, line};
  }
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  bool is_cooperative;
  void (*body)(const void* parameters);  // one thread's work
  const void* parameters;                // a kernel may read them, and nobody may write to them
  size_t parameter_bytes;
  const void* kernel;
};

constexpr int kMultiprocessors = 4, kBlocksEach = 2;  // few: small grids already have more blocks than the device holds
constexpr size_t kMaxDynamicShared = 227 << 10, kMaxParameterBytes = 4096;

// Returns false if no GPU would take it.
bool run(const Launch& launch);

// Lets a kernel have so many bytes of dynamic shared memory; without, 48 KiB.
bool allow_shared(const void* kernel, size_t bytes);

// These return when all threads of the block, the lanes that `mask` names, or all threads of the grid have called them.
void wait_for_block(Place place);
void wait_for_warp(unsigned mask, Place place);
void wait_for_grid(Place place);

// Writes what the 32 lanes gave, `size` <= 32 bytes each, to `all`; zeros for lanes that `mask` does not name. Orders no
// accesses to memory: that takes wait_for_warp.
void gather(const void* own, void* all, size_t size, unsigned mask, Place place);

// Replaces `value` by that of another lane.
void shuffle(void* value, size_t size, unsigned lane, unsigned mask, Place place);

// Conversions of numbers of 16 bits, float16 and bfloat16; from float32 to the nearest, ties to even.
uint16_t to_half(float x);
float from_half(uint16_t half);
uint16_t to_bfloat(float x);
float from_bfloat(uint16_t bfloat);

// mma.sync.m16n8k16 of a whole warp, by a lane; `type` is f16 or bf16. csrc/cuda/halves.h says what a lane holds.
void multiply_halves(const char* type, float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     Place place = Place::current());

// ldmatrix.m8n8.x4 of a whole warp, by a lane that gives a row of 16 bytes. csrc/cuda/halves.h says what it gets. A template, for
// the program itself then reads the row, which is watched.
void exchange_rows(uint32_t (&words)[4], const uint32_t (&row)[4], bool is_transposed, Place place);
template <typename Word>
void load_matrices(Word (&words)[4], const Word* row, bool is_transposed, Place place = Place::current()) {
  const Word own[4] = {row[0], row[1], row[2], row[3]};
  exchange_rows(words, own, is_transposed, place);
}

// What a thread did before its fence is visible to those that see its next atomic operation, after a fence of their own.
void fence(Place place);
void begin_atomic(const void* address, size_t size, void* code);  // `code`: an address in the kernel

void* dynamic_shared_memory();

void* allocate(size_t size);  // device memory, or null
void free(void* memory);
void mark_written(const void* memory, size_t size);  // by the host

}  // namespace emulator
