// Control flow: branches, returns and exits, traps; and instructions about the execution itself.
// Calls are in ops_call.cpp; those of functions in the module are linked in place, by inline.cpp.

#include <cstring>

#include "bind.h"
#include "machine.h"

namespace hostsim {
namespace {

void expect_operands(Modifiers const& modifiers, Instruction const& in, size_t count) {
  if (in.operands.size() != count) {
    modifiers.unsupported("needs " + std::to_string(count) + " operands");
  }
}

// Reports about the thread in `lane`, where no memory access says which one it is.
void blame(Execution const& x, int lane) { machine().subject = &x.thread(lane); }

int first_lane(Lanes lanes) { return std::countr_zero(lanes); }

// ---- Branches -------------------------------------------------------------------------------------

// Sends `lanes` of the current fragment to `target`; the rest stays with the fragment.
void send(Execution const& x, Lanes lanes, int target) {
  if (lanes == x.fragment->lanes) {
    x.fragment->pc = target;
  } else {
    x.split(lanes, target);
  }
}

Flow branch(Execution& x, Instruction const& in, Lanes lanes) {
  if (lanes != x.fragment->lanes) {
    ++x.fragment->pc;  // of the lanes that stay
    x.split(lanes, in.operands[0].target);
  } else {
    x.fragment->pc = in.operands[0].target;
  }
  return Flow::kJumped;
}

void bind_branch(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_hints();  // .uni
  modifiers.finish();
  expect_operands(modifiers, in, 1);
  if (!in.operands[0].is(Operand::Kind::kLabel)) {
    modifiers.unsupported("leads to no label");
  }
  in.run = branch;
}

// brx.idx: every lane picks a label of the list by its index.
Flow indexed_branch(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& index = x.in(in.operands[0]);
  std::vector<Operand> const& labels = in.operands[1].elements;
  if (lanes != x.fragment->lanes) {
    x.split(x.fragment->lanes & ~lanes, x.fragment->pc + 1);
  }
  while (lanes != 0) {
    int const first = first_lane(lanes);
    uint32_t const chosen = uint32_t(index[first]);
    if (chosen >= labels.size()) {
      blame(x, first);
      fault("trap", "brx.idx with index %u, but there are %zu labels", chosen, labels.size());
    }
    Lanes together = 0;
    for_each_lane(lanes,
                  [&](int lane) { together |= Lanes(uint32_t(index[lane]) == chosen) << lane; });
    send(x, together, labels[chosen].target);
    lanes &= ~together;
  }
  return Flow::kJumped;
}

void bind_indexed_branch(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"idx"});
  modifiers.take_hints();
  modifiers.finish();
  expect_operands(modifiers, in, 2);
  if (!in.operands[1].is(Operand::Kind::kVector)) {
    modifiers.unsupported("has no list of labels");
  }
  in.run = indexed_branch;
}

// ---- Leaving --------------------------------------------------------------------------------------

Flow leave(Execution&, Instruction const&, Lanes) { return Flow::kExit; }

void bind_exit(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_hints();  // ret.uni
  modifiers.finish();
  in.splits = true;
  in.run = leave;
}

Flow trap(Execution& x, Instruction const& in, Lanes lanes) {
  blame(x, first_lane(lanes));
  fault("trap", "%s by lanes %s", in.opcode[0].c_str(), describe_lanes(lanes).c_str());
}

void bind_trap(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.finish();
  in.run = trap;
}

// ---- Clocks ---------------------------------------------------------------------------------------

// Rises with every execution, so that loops which wait for a time end.
uint64_t tick() {
  static uint64_t ticks = 0;
  return ++ticks;
}

template <bool high_half>
Flow read_clock(Execution& x, Instruction const& in, Lanes lanes) {
  uint64_t const now = high_half ? tick() >> 32 : tick();
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { result[lane] = now; });
  return Flow::kNext;
}

// The linker makes "%clock64" of "mov.u64 %rd1, %clock64".
void bind_clock(Instruction& in) {
  bool const high_half = in.opcode[0].ends_with("_hi");
  in.run = high_half ? read_clock<true> : read_clock<false>;
}

Flow nanosleep(Execution& x, Instruction const&, Lanes) { return x.yield(); }

void bind_nanosleep(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"u32"});
  modifiers.finish();
  in.splits = true;
  in.run = nanosleep;
}

// ---- Hints ----------------------------------------------------------------------------------------

Flow no_effect(Execution&, Instruction const&, Lanes) { return Flow::kNext; }

// There is no register file to divide; but the count must be one that the hardware takes.
Flow set_max_registers(Execution& x, Instruction const& in, Lanes lanes) {
  if (!x.converged(x.warp.live())) {
    return Flow::kConverge;
  }
  int const first = first_lane(lanes);
  uint32_t const count = uint32_t(x.in(in.operands[0])[first]);
  if (count % 8 != 0 || count < 24 || count > 256) {
    blame(x, first);
    fault("ptx", "setmaxnreg to %u registers: must be a multiple of 8 from 24 to 256", count);
  }
  return Flow::kNext;
}

void bind_set_max_registers(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"inc", "dec"});
  modifiers.take_one({"sync"});
  modifiers.take_one({"aligned"});
  modifiers.take_one({"u32"});
  modifiers.finish();
  expect_operands(modifiers, in, 1);
  in.splits = true;
  in.run = set_max_registers;
}

// A cache policy is opaque, and nothing depends on it.
Flow create_policy(Execution& x, Instruction const& in, Lanes lanes) {
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { result[lane] = 0; });
  return Flow::kNext;
}

void bind_create_policy(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"fractional", "range", "cvt"});
  modifiers.take("global");
  modifiers.take("L2");  // of createpolicy.cvt.L2
  while (!modifiers.take_prefixed("L2::").empty()) {
  }
  modifiers.take_one({"b64"});
  modifiers.finish();
  in.run = create_policy;
}

void bind_apply_priority(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take("global");
  modifiers.take_one({"L2::evict_normal"});
  modifiers.finish();
  in.run = no_effect;
}

// The data is gone: what is read before the next write is undefined, so it becomes poison.
Flow discard(Execution& x, Instruction const& in, Lanes lanes) {
  constexpr size_t kLine = 128;
  for_each_lane(lanes, [&](int lane) {
    uint64_t const address = x.address(in.operands[0], lane);
    Actor const actor = plain_actor(x.thread(lane));
    std::memset(touch(actor, address, kLine, Access::kWrite, "discard"), 0xff, kLine);
  });
  return Flow::kNext;
}

void bind_discard(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take("global");
  modifiers.take_one({"L2"});
  modifiers.finish();
  expect_operands(modifiers, in, 2);  // the size, which can only be 128
  in.run = discard;
}

void bind_performance_event(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take("mask");
  modifiers.finish();
  in.run = no_effect;
}

// ---- Which lanes run ------------------------------------------------------------------------------

Flow active_mask(Execution& x, Instruction const& in, Lanes lanes) {
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { result[lane] = lanes; });
  return Flow::kNext;
}

void bind_active_mask(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"b32"});
  modifiers.finish();
  expect_operands(modifiers, in, 1);
  in.run = active_mask;
}

}  // namespace

void add_control(BinderTable& table) {
  table["bra"] = bind_branch;
  table["brx"] = bind_indexed_branch;
  table["exit"] = bind_exit;
  table["ret"] = bind_exit;
  table["trap"] = bind_trap;
  table["brkpt"] = bind_trap;  // without a debugger, that is what it is
  table["nanosleep"] = bind_nanosleep;
  table["setmaxnreg"] = bind_set_max_registers;
  table["createpolicy"] = bind_create_policy;
  table["applypriority"] = bind_apply_priority;
  table["discard"] = bind_discard;
  table["pmevent"] = bind_performance_event;
  table["activemask"] = bind_active_mask;
  for (char const* const clock :
       {"%clock", "%clock_hi", "%clock64", "%globaltimer", "%globaltimer_lo", "%globaltimer_hi"}) {
    table[clock] = bind_clock;
  }
}

}  // namespace hostsim
