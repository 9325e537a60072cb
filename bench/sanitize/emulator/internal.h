// What threads.cpp and memory.cpp know of each other.
#pragma once

#include <cstdio>
#include <unistd.h>
#include <vector>

#include "device.h"
#include "fiber.h"

namespace emulator {

// Logical time passes at barriers, fences and atomic operations. An access that another thread made at time t comes
// before all that follows a common barrier, if that barrier was complete at a time > t.
using Time = uint32_t;

// What a thread said by a fence and an atomic operation: its own accesses before the time `own` are done, and so are those
// of its block before `block`.
struct Release {
  unsigned thread, block_number;
  Time own, block;
};

// The first `count` releases at one address: those that an atomic operation there has seen.
struct Seen {
  const std::vector<Release>* releases = nullptr;
  size_t count = 0;
  Time time = 0;
};

enum class Waits { kNot, kBlock, kWarp, kShuffle, kGrid, kDone };

struct Block {
  uint3 index;
  unsigned number, first_thread, n_live, n_waiting;
  Time time;
  Seen seen;
  std::vector<char> shared;  // while another block runs
};

struct Warp {
  unsigned first_thread, n_lanes;
  int n_waiting;  // for lanes of the warp
  Time time;
};

struct Thread {
  Context context;
  uint3 index;
  unsigned number;  // in the grid
  unsigned lane;
  Block* block;
  Warp* warp;
  Waits waits;
  unsigned mask;  // whom it waits for, in its warp
  Place place;    // where it waits
  Time fence_time, mask_time;
  Time fenced_time;  // of its block's last barrier before the fence: what others did until then is done, too
  unsigned synced_mask;  // the lanes of its last barrier of a part of the warp, at mask_time
  Seen offered, seen;
  char given[32];     // to the other lanes,
  char got[32 * 32];  // and by them
};

extern Thread* self;  // the thread that runs, or null: the host
extern Launch current;
extern Time now;

unsigned threads_per_block();
bool is_left_out(const Place& place);
bool is_private(const void* address);  // memory that nobody else uses: stacks, and a thread's indices
const char* name_of(const Place& place);

void all_is_done(Time time);  // order.cpp: what came before needs no order any more

// memory.cpp
void begin_block_memory();
void save_shared(Block& block);
void restore_shared(Block& block);

template <typename... Words>
[[noreturn]] void fail(const char* format, Words... words) {
  std::fflush(stdout);
  std::printf("FAULT: ");
  std::printf(format, words...);
  std::printf("\n");
  std::fflush(stdout);
  _exit(1);  // a thread's stack is no place for the destructors of the program
}

}  // namespace emulator
