// What instructions share that the lanes of a warp execute together.
#pragma once

#include <array>

#include "machine.h"

namespace hostsim {

// Lanes that execute a .sync instruction with the same member mask.
struct MaskGroup {
  Lanes mask = 0;   // as they passed it
  Lanes lanes = 0;  // the live ones: PTX waits for the "non-exited threads" of the mask
};

struct MaskGroups {
  std::array<MaskGroup, kWarpSize> groups;
  int count = 0;
  MaskGroup const* begin() const { return groups.data(); }
  MaskGroup const* end() const { return groups.data() + count; }
};

// Finds the groups whose lanes are all in this fragment, by each lane's mask. The other lanes leave
// the fragment and come back to the instruction on their own. If no group is there: kConverge.
// A lane that its own mask lacks, or that disagrees with another lane of the mask, is a fault.
MaskGroups gather_groups(Execution const& x, Instruction const& in, Row const& masks);

// For .aligned instructions, which all 32 lanes execute together: false if some have yet to come,
// and then return Flow::kConverge. Lanes that never will are a fault.
bool whole_warp(Execution const& x, Instruction const& in);

}  // namespace hostsim
