// Fences, and what concerns a launch and its neighbours in the stream.

#include "bind.h"
#include "machine.h"
#include "ops_memory.h"

namespace hostsim {
namespace {

template <FenceScope scope>
Flow thread_fence(Execution& x, Instruction const&, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) { fence(x.thread(lane), scope); });
  return Flow::kNext;
}

// Execution is sequential here, so a proxy fence only says that plain accesses so far are visible to
// the asynchronous proxy.
Flow proxy_fence(Execution& x, Instruction const&, Lanes lanes) {
  if (machine().racing) {
    for_each_lane(lanes, [&](int lane) {
      ThreadClock& clock = x.thread(lane).clock;
      clock.proxy_fence = clock.epoch;
      clock.proxy_seen = clock.seen;
      ++clock.epoch;
    });
  }
  return Flow::kNext;
}

Flow no_effect(Execution&, Instruction const&, Lanes) { return Flow::kNext; }

void bind_fence(Instruction& in) {
  Modifiers modifiers(in);
  // Names the proxies it joins; those of other spaces (alias, tensor maps) have nothing to track.
  std::string const proxy = modifiers.take_prefixed("proxy");
  if (!proxy.empty() || modifiers.take("async") || modifiers.take("tensormap::generic")) {
    bool const async = in.text.find("async") != std::string::npos;
    modifiers.take_any({"async", "alias"});
    take_order(modifiers);
    take_scope(modifiers);
    while (modifiers.take_any({"global", "shared::cta", "shared::cluster",
                               "sync_restrict::shared::cta", "sync_restrict::shared::cluster",
                               "generic"}) >= 0) {
    }
    modifiers.take_prefixed("tensormap::");
    modifiers.take_prefixed("async::");
    modifiers.finish();
    in.run = async ? proxy_fence : no_effect;
    return;
  }
  if (modifiers.take("mbarrier_init")) {  // orders an mbarrier.init, which is immediate here
    take_order(modifiers);
    take_scope(modifiers);
    modifiers.finish();
    in.run = thread_fence<kWideScope>;
    return;
  }
  modifiers.take_any({"sc", "acq_rel", "acquire", "release"});
  FenceScope const scope = take_scope(modifiers);
  while (modifiers.take_any({"sync_restrict::shared::cta", "sync_restrict::shared::cluster"}) >=
         0) {
  }
  modifiers.finish();
  in.run = scope == kBlockScope ? thread_fence<kBlockScope> : thread_fence<kWideScope>;
}

void bind_membar(Instruction& in) {
  Modifiers modifiers(in);
  if (!modifiers.take_prefixed("proxy").empty()) {
    bind_fence(in);
    return;
  }
  int const scope = modifiers.take_one({"cta", "gl", "sys"});
  modifiers.finish();
  in.run = scope == 0 ? thread_fence<kBlockScope> : thread_fence<kWideScope>;
}

// ---- Programmatic dependent launch ------------------------------------------------------------------

// What the threads of `grid` have seen once the grid before it is complete.
void see_previous(Grid& grid) {
  if (grid.previous == nullptr || !grid.saw_after_wait.empty()) {
    return;
  }
  grid.saw_after_wait.insert(grid.previous->serial);
  if (grid.previous->all_waited) {
    grid.saw_after_wait.insert(grid.previous->saw_after_wait.begin(),
                               grid.previous->saw_after_wait.end());
  }
}

Flow wait_for_previous(Execution& x, Instruction const&, Lanes lanes) {
  Grid& grid = x.grid();
  if (grid.previous != nullptr && grid.previous->state != Grid::State::kFinished) {
    grid.waiting_for_previous.emplace_back(&x.warp, lanes);
    return x.retry("griddepcontrol.wait");
  }
  see_previous(grid);
  for_each_lane(lanes, [&](int lane) { x.thread(lane).clock.seen.saw_predecessor = true; });
  return Flow::kNext;
}

Flow launch_dependents(Execution& x, Instruction const&, Lanes) {
  Block& block = x.block();
  if (!block.triggered) {
    block.triggered = true;
    --x.grid().untriggered_blocks;
    ++machine().progress;
  }
  return Flow::kNext;
}

void bind_griddepcontrol(Instruction& in) {
  Modifiers modifiers(in);
  bool const waits = modifiers.take_one({"wait", "launch_dependents"}) == 0;
  modifiers.finish();
  in.run = waits ? wait_for_previous : launch_dependents;
  in.splits = waits;
}

}  // namespace

void add_grid(BinderTable& table) {
  table["fence"] = bind_fence;
  table["membar"] = bind_membar;
  table["griddepcontrol"] = bind_griddepcontrol;
}

}  // namespace hostsim
