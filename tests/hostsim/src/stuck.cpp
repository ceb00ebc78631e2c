#include "stuck.h"

#include <bit>
#include <map>
#include <string>

#include "machine.h"

namespace hostsim {
namespace {

std::string describe_wait(Warp const& warp, Fragment const& fragment) {
  auto const& code = warp.block->grid->kernel->code;
  // A sleeper's pc is past its instruction.
  int const pc = fragment.state == Fragment::State::kWaiting && fragment.sleeps ? fragment.pc - 1
                                                                                : fragment.pc;
  Instruction const& in = code[size_t(pc)];
  std::string text;
  switch (fragment.state) {
    case Fragment::State::kReady: text = "run"; break;
    case Fragment::State::kWaiting: text = std::string("wait at ") + fragment.waits_for; break;
    case Fragment::State::kConverging: text = "wait for other lanes of their warp"; break;
  }
  return text + " in '" + in.text + "', " + describe(in.location);
}

// What is known about the thing a fragment waits for.
std::string describe_wait_state(Block const& block, Fragment const& fragment) {
  if (fragment.state != Fragment::State::kWaiting) {
    return "";
  }
  if (auto const it = block.mbarriers.find(fragment.waits_at); it != block.mbarriers.end()) {
    MBarrier const& barrier = it->second;
    return "; the mbarrier at shared offset " + std::to_string(it->first) + " misses " +
           std::to_string(barrier.pending) + " of " + std::to_string(barrier.count) +
           " arrivals and " + std::to_string(barrier.pending_bytes) + " bytes";
  }
  if (fragment.waits_at < block.barriers.size()) {
    Barrier const& barrier = block.barriers[fragment.waits_at];
    if (barrier.arrived > 0) {
      return "; " + std::to_string(barrier.arrived) + " of " + std::to_string(barrier.expected) +
             " threads have arrived";
    }
  }
  return "";
}

}  // namespace

void report_stuck(char const* kind, char const* summary) {
  struct Group {
    int threads = 0;
    std::string first;
  };
  std::map<std::string, Group> groups;
  for (auto const& grid : machine().queue) {
    for (auto const& cluster : grid->running) {
      for (auto const& block : cluster->blocks) {
        for (auto const& warp : block->warps) {
          for (auto const& fragment : warp->fragments) {
            Group& group = groups[describe_wait(*warp, *fragment)];
            if (group.threads == 0) {
              group.first = short_kernel_name(grid->kernel->name) + ", block " +
                            std::to_string(block->index) + ", warp " + std::to_string(warp->index) +
                            ", lanes " + describe_lanes(fragment->lanes) +
                            describe_wait_state(*block, *fragment);
            }
            group.threads += std::popcount(fragment->lanes);
          }
        }
      }
    }
  }
  std::string all;
  for (auto const& [where, group] : groups) {
    all += "\n  " + std::to_string(group.threads) + " threads " + where + "; first: " + group.first;
  }
  machine().now = nullptr;
  machine().instruction = nullptr;
  fault(kind, "%s:%s", summary, all.c_str());
}

}  // namespace hostsim
