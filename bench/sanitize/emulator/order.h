// Which accesses come before which.
#pragma once

#include <optional>

#include "internal.h"

namespace emulator {

enum Span : uint32_t { kOne, kWarp, kBlock };

// The last accesses to some bytes: by one thread, or by several of one warp or block, of which `thread` is one.
struct Access {
  Time time;  // of the last one
  uint32_t thread : 29, span : 2, has_older : 1;
  uint32_t code;  // the address behind it; programs are linked without -pie
};

struct Cell {
  Access write, read;
};

// An access to the same bytes by another thread, which neither comes before the running thread's nor after it.
struct Conflict {
  Access with;
  const char* verb;
};

// Note an access of the running thread. No block but its own has touched the bytes if they are shared memory. An atomic
// operation is not noted: it is in order with all others.
using Verdict = std::optional<Conflict>;
Verdict note_read(Cell& cell, bool is_shared, uintptr_t code);
Verdict note_write(Cell& cell, bool is_shared, uintptr_t code);
Verdict note_atomic(Cell& cell, bool is_shared);

// An atomic operation at `address` releases what came before its thread's last fence, and is offered what others released there:
// the thread sees it from its next fence on.
void see_and_release(const void* address);

}  // namespace emulator
