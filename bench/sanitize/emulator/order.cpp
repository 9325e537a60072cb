// Which accesses come before which: by one thread, by a barrier between them, or because one thread saw another's release.

#include "order.h"

#include <unordered_map>

namespace emulator {
namespace {

Time settled = 1;  // what came before needs no order any more
std::unordered_map<const Cell*, std::vector<Access>> older;  // reads by other blocks than the last
std::unordered_map<const void*, std::vector<Release>> releases;

unsigned block_of(const Access& a) {
  return a.thread / threads_per_block();
}
unsigned warp_of(unsigned thread) {
  return thread % threads_per_block() / 32;
}

bool has_seen(const Seen& seen, const Access& a) {
  for (size_t i = 0; i < seen.count; ++i) {
    const Release& r = (*seen.releases)[i];
    if (r.block_number == block_of(a) &&
        (a.time < r.block || (a.span == kOne && a.thread == r.thread && a.time < r.own)))
      return true;
  }
  return false;
}

// Whether the access comes before all that the running thread does from now on.
bool is_before(const Access& a, bool is_shared) {
  const Thread& t = *self;
  if (a.time < settled || (a.span == kOne && a.thread == t.number)) return true;
  if (block_of(a) != t.block->number) return is_shared || has_seen(t.seen, a) || has_seen(t.block->seen, a);
  if (a.time < t.block->time) return true;
  if (a.span == kBlock || warp_of(a.thread) != warp_of(t.number)) return false;
  if (a.time < t.warp->time) return true;
  return a.span == kOne && a.time < t.mask_time && (t.synced_mask >> a.thread % threads_per_block() % 32 & 1);
}

Access own_access(uintptr_t code, bool has_older) {
  return {now, self->number, kOne, has_older, static_cast<uint32_t>(code)};
}

}  // namespace

Verdict note_read(Cell& cell, bool is_shared, uintptr_t code) {
  if (!is_before(cell.write, is_shared)) return Conflict{cell.write, "wrote"};
  Access& r = cell.read;
  if (is_before(r, is_shared)) {
    r = own_access(code, r.has_older && r.time >= settled);
  } else if (block_of(r) == self->block->number) {
    r.span = r.span < kBlock && warp_of(r.thread) == warp_of(self->number) ? kWarp : kBlock;
    r.time = now;
  } else {
    older[&cell].push_back(r);
    r = own_access(code, true);
  }
  return {};
}

Verdict note_atomic(Cell& cell, bool is_shared) {
  if (!is_before(cell.write, is_shared)) return Conflict{cell.write, "wrote"};
  if (!is_before(cell.read, is_shared)) return Conflict{cell.read, "read"};
  if (!cell.read.has_older || cell.read.time < settled) return {};
  for (const Access& r : older[&cell])
    if (!is_before(r, is_shared)) return Conflict{r, "read"};
  return {};
}

Verdict note_write(Cell& cell, bool is_shared, uintptr_t code) {
  const Verdict verdict = note_atomic(cell, is_shared);
  cell.write = own_access(code, false);
  cell.read = {};
  return verdict;
}

void see_and_release(const void* address) {
  std::vector<Release>& here = releases[address];
  if (self->fence_time > 0)
    here.push_back({self->number, self->block->number, self->fence_time, self->fenced_time});
  self->offered = {&here, here.size(), ++now};
}

void all_is_done(Time time) {
  settled = time;
  older.clear();
  releases.clear();
}

}  // namespace emulator
