// mbarrier.*, and cp.async.mbarrier.arrive.

#include <algorithm>
#include <bit>

#include "bind.h"
#include "mbarrier.h"
#include "ops_memory.h"

namespace hostsim {
namespace {

struct MbarrierDetail : Detail {
  Space space = Space::kGeneric;
  int memory = 0;       // index of the operand
  bool ordered = true;  // .release or .acquire, not .relaxed
  // arrive
  bool expects_bytes = false, drops = false, completes = true;
  // test_wait, try_wait
  bool by_parity = false, polls = false;
};

uint32_t shared_address(Execution const& x, Instruction const& in, int lane, char const* what) {
  auto const& detail = in.as<MbarrierDetail>();
  uint64_t const given = x.address(in.operands[size_t(detail.memory)], lane);
  uint32_t const address = detail.space == Space::kGeneric ? to_shared(given) : uint32_t(given);
  if (detail.space != Space::kSharedCluster && shared_owner(address) != &x.block()) {
    fault("mbarrier", "%s: 0x%llx is not in the shared memory of the thread's own block", what,
          (unsigned long long)given);
  }
  return address;
}

// The optional operand after the address.
bool has_operand_after_memory(Instruction const& in) {
  return in.operands.size() > size_t(in.as<MbarrierDetail>().memory) + 1;
}

Row const& operand_after_memory(Execution const& x, Instruction const& in) {
  return x.in(in.operands[size_t(in.as<MbarrierDetail>().memory) + 1]);
}

// ---- init, inval --------------------------------------------------------------------------------

Flow run_init(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& counts = x.in(in.operands[1]);
  for_each_lane(lanes, [&](int lane) {
    init_mbarrier(x.thread(lane), shared_address(x, in, lane, "mbarrier.init"),
                  uint32_t(counts[lane]));
  });
  return Flow::kNext;
}

Flow run_inval(Execution& x, Instruction const& in, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) {
    invalidate_mbarrier(x.thread(lane), shared_address(x, in, lane, "mbarrier.inval"));
  });
  return Flow::kNext;
}

// ---- Transactions and arrivals ------------------------------------------------------------------

Flow run_expect_tx(Execution& x, Instruction const& in, Lanes lanes) {
  constexpr char const* kName = "mbarrier.expect_tx";
  for_each_lane(lanes, [&](int lane) {
    MBarrier& barrier =
        find_mbarrier(atomic_actor(x.thread(lane)), shared_address(x, in, lane, kName), kName);
    expect_bytes(barrier, uint32_t(operand_after_memory(x, in)[lane]), kName);
  });
  return Flow::kNext;
}

Flow run_complete_tx(Execution& x, Instruction const& in, Lanes lanes) {
  constexpr char const* kName = "mbarrier.complete_tx";
  for_each_lane(lanes, [&](int lane) {
    MBarrier& barrier =
        find_mbarrier(atomic_actor(x.thread(lane)), shared_address(x, in, lane, kName), kName);
    complete_bytes(barrier, uint32_t(operand_after_memory(x, in)[lane]), kName);
  });
  return Flow::kNext;
}

// The opaque state that arrive returns: the phase, and the pending count before the arrival.
uint64_t make_state(MBarrier const& barrier) {
  return uint64_t(barrier.phase) << 32 | barrier.pending;
}
uint32_t phase_of_state(uint64_t state) { return uint32_t(state >> 32); }
uint32_t pending_of_state(uint64_t state) { return uint32_t(state); }

void arrive_lane(Execution const& x, Instruction const& in, int lane, Row& states) {
  constexpr char const* kName = "mbarrier.arrive";
  auto const& detail = in.as<MbarrierDetail>();
  Thread& thread = x.thread(lane);
  MBarrier& barrier =
      find_mbarrier(atomic_actor(thread), shared_address(x, in, lane, kName), kName);
  uint32_t count = 1;
  if (detail.expects_bytes) {
    expect_bytes(barrier, uint32_t(operand_after_memory(x, in)[lane]), kName);
  } else if (has_operand_after_memory(in)) {
    count = uint32_t(operand_after_memory(x, in)[lane]);
  }
  states[lane] = make_state(barrier);
  if (detail.ordered) {
    barrier.arriving.release(thread);
  } else {  // passes on what the thread's last fence released
    barrier.arriving.join(thread.clock.released[kBlockScope]);
  }
  if (!detail.completes && count >= barrier.pending && barrier.pending_bytes == 0) {
    report("mbarrier", "mbarrier.arrive.noComplete completes the phase: %u arrivals of %u to come",
           count, barrier.pending);
  }
  if (detail.drops) {
    barrier.count -= std::min(count, barrier.count);
  }
  arrive(barrier, count, kName);
}

Flow run_arrive(Execution& x, Instruction const& in, Lanes lanes) {
  Row& states = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { arrive_lane(x, in, lane, states); });
  return Flow::kNext;
}

Flow run_pending_count(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& states = x.in(in.operands[1]);
  Row& counts = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { counts[lane] = pending_of_state(states[lane]); });
  return Flow::kNext;
}

// The arrival happens when all cp.async of the thread so far have ended. Without .noinc it is one
// more than the phase was to have.
Flow run_copies_arrive(Execution& x, Instruction const& in, Lanes lanes) {
  constexpr char const* kName = "cp.async.mbarrier.arrive";
  bool const is_extra = !in.as<MbarrierDetail>().completes;
  for_each_lane(lanes, [&](int lane) {
    Thread& thread = x.thread(lane);
    uint32_t const address = shared_address(x, in, lane, kName);
    MBarrier& barrier = find_mbarrier(atomic_actor(thread), address, kName);
    barrier.pending += is_extra;
    std::vector<AsyncRef> copies = thread.copies.open;
    for (AsyncGroup const& group : thread.copies.committed) {
      copies.insert(copies.end(), group.ops.begin(), group.ops.end());
    }
    SyncClock released;
    released.release(thread);
    released.add(Agent::of_copies(x.block().index, thread.index), ++thread.clock.async_issued);
    issue([=, &block = x.block(), copies = std::move(copies)] {
      for (AsyncRef const& copy : copies) {
        complete(copy);
      }
      arrive_later(block, shared_offset(address), released, kName);
    });
  });
  return Flow::kNext;
}

// ---- Waiting ------------------------------------------------------------------------------------

bool phase_is_complete(MBarrier const& barrier, MbarrierDetail const& detail, uint64_t wanted) {
  if (detail.by_parity) {
    if (uint32_t(wanted) > 1) {
      report("mbarrier", "a wait for phase parity %u, which is 0 or 1", uint32_t(wanted));
    }
    return (barrier.phase & 1) != (wanted & 1);
  }
  uint32_t const phase = phase_of_state(wanted);
  if (phase != barrier.phase && phase + 1 != barrier.phase) {
    report("mbarrier",
           "a wait for phase %u of an mbarrier in phase %u: only that one and the one "
           "before can be waited for",
           phase, barrier.phase);
  }
  return phase != barrier.phase;
}

// The lanes that wait at the same mbarrier as the first one; the others part from them and execute
// the instruction on their own, so that one wake() is about one mbarrier.
Lanes keep_same_mbarrier(Execution const& x, Instruction const& in, Lanes lanes, uint32_t address,
                         char const* what) {
  Lanes same = 0;
  for_each_lane(lanes, [&](int lane) {
    same |= Lanes(shared_address(x, in, lane, what) == address) << lane;
  });
  if (same != lanes) {
    x.split(lanes & ~same, x.fragment->pc);
  }
  return same;
}

Flow run_wait(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& detail = in.as<MbarrierDetail>();
  char const* const name = detail.polls ? "mbarrier.test_wait" : "mbarrier.try_wait";
  uint32_t const address = shared_address(x, in, std::countr_zero(lanes), name);
  lanes = keep_same_mbarrier(x, in, lanes, address, name);
  Row const& wanted = operand_after_memory(x, in);
  Row& results = x.out(in.operands[0]);
  MBarrier* barrier = nullptr;
  Lanes complete = 0;
  for_each_lane(lanes, [&](int lane) {
    barrier = &find_mbarrier(atomic_actor(x.thread(lane)), address, name);
    complete |= Lanes(phase_is_complete(*barrier, detail, wanted[lane])) << lane;
  });
  Machine& m = machine();
  // try_wait is free to give up, so that in random order it does now and then.
  bool const gives_up = m.settings.order == Order::kRandom && m.chance(8);
  if (complete == 0 && !detail.polls && !gives_up) {
    barrier->waiting.emplace_back(&x.warp, lanes);
    return x.retry("an mbarrier", shared_offset(address));
  }
  for_each_lane(lanes, [&](int lane) {
    bool const is_complete = (complete >> lane & 1) != 0;
    results[lane] = is_complete;
    if (is_complete && detail.ordered) {
      barrier->completed.acquire(x.thread(lane));
    } else if (is_complete) {  // for the thread's next fence
      x.thread(lane).clock.pending[kBlockScope].join(barrier->completed.clock());
    }
  });
  return complete == lanes ? Flow::kNext : x.yield();
}

// ---- Binding ------------------------------------------------------------------------------------

// "mbarrier" and the operation are taken; takes .sem, .scope, .space and .b64.
void bind_common(Instruction& in, Modifiers& modifiers, std::unique_ptr<MbarrierDetail> detail) {
  detail->ordered = modifiers.take_any({"acquire", "release", "relaxed"}) != 2;
  modifiers.take_any({"cta", "cluster"});
  detail->space = take_space(modifiers);
  if (detail->space != Space::kGeneric && !is_shared(detail->space)) {
    modifiers.unsupported("an mbarrier lies in shared memory");
  }
  modifiers.take_one({"b64"});
  modifiers.finish();
  while (detail->memory < int(in.operands.size()) &&
         !in.operands[size_t(detail->memory)].is(Operand::Kind::kMemory)) {
    ++detail->memory;
  }
  if (detail->memory == int(in.operands.size())) {
    modifiers.unsupported("no address");
  }
  in.detail = std::move(detail);
}

template <Handler handler>
void bind_simple(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take(in.opcode[1]);
  in.run = handler;
  bind_common(in, modifiers, std::make_unique<MbarrierDetail>());
}

void bind_arrive(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<MbarrierDetail>();
  detail->drops = modifiers.take_one({"arrive", "arrive_drop"}) == 1;
  detail->expects_bytes = modifiers.take("expect_tx");
  detail->completes = !modifiers.take("noComplete");
  bind_common(in, modifiers, std::move(detail));
  if (in.as<MbarrierDetail>().memory != 1) {
    modifiers.unsupported("the first operand is the state, or _");
  }
  if (in.operands[0].is(Operand::Kind::kRow) &&
      in.as<MbarrierDetail>().space == Space::kSharedCluster) {
    modifiers.unsupported("an arrival in .shared::cluster returns no state");
  }
  in.run = run_arrive;
}

void bind_wait(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<MbarrierDetail>();
  detail->polls = modifiers.take_one({"test_wait", "try_wait"}) == 0;
  detail->by_parity = modifiers.take("parity");
  bind_common(in, modifiers, std::move(detail));
  if (in.as<MbarrierDetail>().space == Space::kSharedCluster) {
    modifiers.unsupported("only mbarriers of the own block can be waited for");
  }
  in.run = run_wait;
  in.splits = true;
}

void bind_pending_count(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take("pending_count");
  modifiers.take("b64");
  modifiers.finish();
  in.run = run_pending_count;
}

void bind_copies_arrive(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<MbarrierDetail>();
  for (char const* word : {"async", "mbarrier", "arrive"}) {
    modifiers.take(word);
  }
  detail->completes = modifiers.take("noinc");
  in.run = run_copies_arrive;
  bind_common(in, modifiers, std::move(detail));
}

}  // namespace

void add_mbarrier(BinderTable& table) {
  table["mbarrier.init"] = bind_simple<run_init>;
  table["mbarrier.inval"] = bind_simple<run_inval>;
  table["mbarrier.expect_tx"] = bind_simple<run_expect_tx>;
  table["mbarrier.complete_tx"] = bind_simple<run_complete_tx>;
  table["mbarrier.arrive"] = bind_arrive;
  table["mbarrier.arrive_drop"] = bind_arrive;
  table["mbarrier.test_wait"] = bind_wait;
  table["mbarrier.try_wait"] = bind_wait;
  table["mbarrier.pending_count"] = bind_pending_count;
  table["cp.async.mbarrier"] = bind_copies_arrive;
}

}  // namespace hostsim
