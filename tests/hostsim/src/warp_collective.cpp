#include "warp_collective.h"

#include <bit>

namespace hostsim {
namespace {

Lanes lanes_with_mask(Lanes among, Row const& masks, Lanes mask) {
  Lanes same = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    same |= Lanes(Lanes(masks[lane]) == mask) << lane;
  }
  return same & among;
}

}  // namespace

MaskGroups gather_groups(Execution const& x, Instruction const& in, Row const& masks) {
  MaskGroups found;
  Lanes const here = x.fragment->lanes;
  Lanes complete = 0;
  for (Lanes todo = here; todo != 0;) {
    Lanes const mask = Lanes(masks[std::countr_zero(todo)]);
    Lanes const same = lanes_with_mask(todo, masks, mask);
    todo &= ~same;
    if ((same & ~mask) != 0) {
      fault("warp", "%s: lanes %s pass member mask 0x%08x, which does not contain them",
            in.opcode[0].c_str(), describe_lanes(same & ~mask).c_str(), mask);
    }
    Lanes const wanted = mask & x.warp.live();
    if ((wanted & ~here) != 0) {
      continue;
    }
    if (wanted != same) {
      int const other = std::countr_zero(wanted & ~same);
      fault("warp", "%s: lanes %s pass member mask 0x%08x, but lane %d of it passes 0x%08x",
            in.opcode[0].c_str(), describe_lanes(same).c_str(), mask, other, Lanes(masks[other]));
    }
    found.groups[size_t(found.count++)] = {mask, wanted};
    complete |= wanted;
  }
  if (complete != 0 && complete != here) {
    x.split(here & ~complete, x.fragment->pc);
  }
  return found;
}

bool whole_warp(Execution const& x, Instruction const& in) {
  if (x.warp.live() != kAllLanes) {
    fault("warp", "%s needs all 32 lanes of the warp, but %s %s", in.opcode[0].c_str(),
          x.warp.exited != 0 ? "some have exited: lanes" : "it has only lanes",
          describe_lanes(x.warp.exited != 0 ? x.warp.exited : x.warp.existing).c_str());
  }
  return x.converged(kAllLanes);
}

}  // namespace hostsim
