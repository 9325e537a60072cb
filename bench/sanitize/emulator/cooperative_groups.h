// The barrier of the grid.
#pragma once

#include "device.h"

namespace cooperative_groups {

struct grid_group {
  void sync(emulator::Place place = emulator::Place::current()) const { emulator::wait_for_grid(place); }
};
inline grid_group this_grid() {
  return {};
}

}  // namespace cooperative_groups
