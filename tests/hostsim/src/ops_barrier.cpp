// bar, barrier: the sixteen barriers of a block. bar.warp.sync: a barrier of lanes of one warp.
//
// A barrier counts warps: one has arrived when all of its lanes that have not exited are there, and
// then counts as 32 threads (PTX: the instruction "marks warps' arrival"). The aligned forms bring
// all lanes at once; the lanes of the others come one by one.

#include "ops_barrier.h"

#include <bit>

#include "mbarrier.h"
#include "tensor_memory.h"

namespace hostsim {
namespace {

enum class Action { kSync, kArrive, kReduce };
enum class Reduction { kPopc, kAnd, kOr };

struct BarrierDetail : Detail {
  Action action = Action::kSync;
  Reduction reduction = Reduction::kPopc;
  bool aligned = true;
  // Indices of operands; -1 where there is none.
  int result = -1, id = 0, count = -1, predicate = -1;
};

// ---- The state of a barrier ---------------------------------------------------------------------

int missing_threads(Block const& block, Barrier const& barrier) {
  int missing = barrier.expected - barrier.arrived;
  if (barrier.whole_block) {
    for (auto const& warp : block.warps) {
      bool const counted = (barrier.warps_arrived >> warp->index & 1) != 0;
      missing -= !counted && warp->live() == 0 ? kWarpSize : 0;
    }
  }
  return missing;
}

void count_warp_if_complete(Barrier& barrier, Warp const& warp) {
  uint32_t const bit = 1u << warp.index;
  Lanes const come = barrier.lanes_arrived[size_t(warp.index)];
  if (come != 0 && (warp.live() & ~come) == 0 && (barrier.warps_arrived & bit) == 0) {
    barrier.warps_arrived |= bit;
    barrier.arrived += kWarpSize;
  }
}

uint64_t reduced(Barrier const& barrier) {
  switch (Reduction(barrier.reduction)) {
    case Reduction::kPopc: return barrier.red_count;
    case Reduction::kAnd: return barrier.red_and;
    case Reduction::kOr: return barrier.red_count != 0;
  }
  return 0;
}

// Lets everybody go on and makes the barrier ready for its next use.
void release_waiting(Barrier& barrier) {
  for (size_t i = 0; i < barrier.waiting.size(); ++i) {
    auto const [warp, lanes] = barrier.waiting[i];
    for_each_lane(lanes, [&, warp = warp](int lane) {
      barrier.clock.acquire(warp->threads[size_t(lane)]);
      if (barrier.reduction >= 0) {
        (*barrier.results[i])[lane] = reduced(barrier);
      }
    });
  }
  auto waiting = std::move(barrier.waiting);
  barrier = {};
  wake_all(waiting);
}

// ---- Arriving -----------------------------------------------------------------------------------

struct Request {
  uint32_t id;
  bool whole_block;
  uint32_t count;  // unless whole_block
  bool operator==(Request const&) const = default;
};

Request request_of(Execution const& x, Instruction const& in, int lane) {
  auto const& detail = in.as<BarrierDetail>();
  auto const value = [&](int operand) {
    return uint32_t(x.in(in.operands[size_t(operand)])[lane]);
  };
  return {value(detail.id), detail.count < 0, detail.count < 0 ? 0 : value(detail.count)};
}

int expected_threads(Block const& block, Request const& request) {
  int const block_threads = int(block.warps.size()) * kWarpSize;
  if (request.whole_block) {
    return block_threads;
  }
  if (request.count == 0 || request.count % kWarpSize != 0) {
    fault("barrier", "barrier %u: the thread count %u is no positive multiple of the warp size",
          request.id, request.count);
  }
  if (request.count > uint32_t(block_threads)) {
    fault("barrier", "barrier %u: the thread count is %u, and the block has %d threads", request.id,
          request.count, block.num_threads);
  }
  return int(request.count);
}

// The barrier, after all checks of what `lanes` ask of it.
Barrier& open_barrier(Execution const& x, BarrierDetail const& detail, Request const& request,
                      Lanes lanes) {
  Block& block = x.block();
  if (request.id >= block.barriers.size()) {
    fault("barrier", "there are barriers 0 to 15, not %u", request.id);
  }
  Barrier& barrier = block.barriers[request.id];
  int const expected = expected_threads(block, request);
  int const reduction = detail.action == Action::kReduce ? int(detail.reduction) : -1;
  if (barrier.expected < 0) {
    barrier.expected = expected;
    barrier.reduction = reduction;
  } else if (barrier.expected != expected) {
    fault("barrier", "barrier %u: %d threads are to come, but %d by an earlier arrival", request.id,
          expected, barrier.expected);
  } else if (barrier.reduction != reduction) {
    fault("barrier", "barrier %u: a reduction meets another one, or a plain arrival", request.id);
  }
  barrier.whole_block |= request.whole_block;
  if (Lanes const twice = barrier.lanes_arrived[size_t(x.warp.index)] & lanes; twice != 0) {
    fault("barrier", "barrier %u: lanes %s arrive again before it is complete (%d of %d threads)",
          request.id, describe_lanes(twice).c_str(), barrier.arrived, barrier.expected);
  }
  return barrier;
}

void arrive(Execution const& x, Instruction const& in, Barrier& barrier, Lanes lanes) {
  auto const& detail = in.as<BarrierDetail>();
  for_each_lane(lanes, [&](int lane) {
    barrier.clock.release(x.thread(lane));
    if (detail.action == Action::kReduce) {
      bool const value = x.predicate(in.operands[size_t(detail.predicate)], lane);
      barrier.red_count += value;
      barrier.red_and &= value;
    }
  });
  if (detail.action != Action::kArrive) {
    barrier.waiting.emplace_back(&x.warp, lanes);
  }
  if (detail.action == Action::kReduce) {
    barrier.results.push_back(&x.out(in.operands[size_t(detail.result)]));
  }
  barrier.lanes_arrived[size_t(x.warp.index)] |= lanes;
  count_warp_if_complete(barrier, x.warp);
}

// The lanes that ask for the same as the first one. The others part from them and run the
// instruction again on their own.
Lanes keep_alike(Execution const& x, Instruction const& in, Lanes lanes) {
  Request const first = request_of(x, in, std::countr_zero(lanes));
  Lanes alike = 0;
  for_each_lane(lanes, [&](int lane) { alike |= Lanes(request_of(x, in, lane) == first) << lane; });
  if (alike != lanes) {
    if (in.as<BarrierDetail>().aligned) {
      fault("barrier", "the lanes of a warp name different barriers or thread counts");
    }
    x.split(lanes & ~alike, x.fragment->pc);
  }
  return alike;
}

Flow run_barrier(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& detail = in.as<BarrierDetail>();
  if (detail.aligned && !x.converged(x.warp.live())) {
    return Flow::kConverge;
  }
  lanes = keep_alike(x, in, lanes);
  Request const request = request_of(x, in, std::countr_zero(lanes));
  Barrier& barrier = open_barrier(x, detail, request, lanes);
  arrive(x, in, barrier, lanes);
  if (missing_threads(x.block(), barrier) == 0) {
    release_waiting(barrier);
    return Flow::kNext;
  }
  return detail.action == Action::kArrive ? Flow::kNext : x.sleep("a barrier", request.id);
}

// ---- bar.warp.sync ------------------------------------------------------------------------------

// Lanes that wait here are found by this pointer; which ones belong together, by their mask.
constexpr char const* kWarpBarrier = "bar.warp.sync";

bool waits_at_warp_barrier(Fragment const& fragment) {
  return fragment.state == Fragment::State::kWaiting && fragment.waits_for == kWarpBarrier;
}

Lanes waiting_with_mask(Warp const& warp, Lanes mask) {
  Lanes waiting = 0;
  for (auto const& fragment : warp.fragments) {
    if (waits_at_warp_barrier(*fragment) && fragment->waits_at == mask) {
      waiting |= fragment->lanes;
    }
  }
  return waiting;
}

void synchronize_lanes(Warp& warp, Lanes lanes) {
  if (!machine().racing) {
    return;
  }
  SyncClock clock;
  for_each_lane(lanes, [&](int lane) { clock.release(warp.threads[size_t(lane)]); });
  for_each_lane(lanes, [&](int lane) { clock.acquire(warp.threads[size_t(lane)]); });
}

// Lanes meet by their masks, wherever in the program each of them is.
Flow run_warp_barrier(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& masks = x.in(in.operands[0]);
  auto const mask = Lanes(masks[std::countr_zero(lanes)]);
  Lanes alike = 0;
  for_each_lane(lanes, [&](int lane) { alike |= Lanes(Lanes(masks[lane]) == mask) << lane; });
  if (alike != lanes) {
    x.split(lanes & ~alike, x.fragment->pc);
  }
  if ((alike & ~mask) != 0) {
    fault("warp", "bar.warp.sync: lanes %s come with a mask of lanes %s",
          describe_lanes(alike).c_str(), describe_lanes(mask).c_str());
  }
  Lanes const waiting = waiting_with_mask(x.warp, mask);
  if ((mask & x.warp.live() & ~(alike | waiting)) != 0) {
    return x.sleep(kWarpBarrier, mask);
  }
  synchronize_lanes(x.warp, alike | waiting);
  if (waiting != 0) {
    wake(x.warp, waiting);
  }
  return Flow::kNext;
}

void warp_threads_exited(Warp& warp) {
  for (auto const& fragment : warp.fragments) {
    if (!waits_at_warp_barrier(*fragment)) {
      continue;
    }
    Lanes const waiting = waiting_with_mask(warp, fragment->waits_at);
    if ((fragment->waits_at & warp.live() & ~waiting) == 0) {
      synchronize_lanes(warp, waiting);
      wake(warp, waiting);
    }
  }
}

// ---- Binding ------------------------------------------------------------------------------------

void bind_operands(Instruction const& in, Modifiers const& modifiers, BarrierDetail& detail) {
  bool const reduces = detail.action == Action::kReduce;
  int const first = reduces ? 1 : 0;
  int const count = int(in.operands.size()) - first - (reduces ? 1 : 0);  // of id and thread count
  if (count < 1 || count > 2) {
    modifiers.unsupported("a barrier takes its number and at most a thread count");
  }
  detail.result = reduces ? 0 : -1;
  detail.id = first;
  detail.count = count == 2 ? first + 1 : -1;
  detail.predicate = reduces ? first + count : -1;
  if (detail.action == Action::kArrive && count == 1) {
    modifiers.unsupported("arrive needs a thread count");
  }
}

void bind_barrier(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<BarrierDetail>();
  modifiers.take("cta");
  detail->action = Action(modifiers.take_one({"sync", "arrive", "red"}));
  detail->aligned = modifiers.take("aligned") || in.opcode[0] == "bar";
  if (detail->action == Action::kReduce) {
    detail->reduction = Reduction(modifiers.take_one({"popc", "and", "or"}));
    modifiers.take(detail->reduction == Reduction::kPopc ? "u32" : "pred");
  }
  modifiers.finish();
  bind_operands(in, modifiers, *detail);
  in.run = run_barrier;
  in.splits = true;
  in.detail = std::move(detail);
}

void bind_warp_barrier(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take("warp");
  modifiers.take("sync");
  modifiers.finish();
  in.run = run_warp_barrier;
  in.splits = true;
}

}  // namespace

void threads_exited(Block& block) {
  for (Barrier& barrier : block.barriers) {
    if (barrier.expected < 0) {
      continue;
    }
    for (auto const& warp : block.warps) {
      count_warp_if_complete(barrier, *warp);
    }
    if (missing_threads(block, barrier) == 0) {
      release_waiting(barrier);
    }
  }
  for (auto const& warp : block.warps) {
    warp_threads_exited(*warp);
  }
  cluster_threads_exited(*block.cluster);
  if (block.live_threads == 0) {
    check_bytes_at_exit(block);
    check_tensor_memory_at_exit(block);
  }
}

void add_barrier(BinderTable& table) {
  table["bar"] = bind_barrier;
  table["barrier"] = bind_barrier;
  table["bar.warp"] = bind_warp_barrier;
  add_cluster(table);
}

}  // namespace hostsim
