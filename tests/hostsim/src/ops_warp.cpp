// Exchange between the lanes of a warp: shfl, vote, match, redux, elect. All are .sync: the live
// lanes of the member mask execute them together; lanes of a fragment may name different masks.

#include <bit>
#include <cmath>
#include <functional>
#include <limits>

#include "bind.h"
#include "warp_collective.h"

namespace hostsim {
namespace {

constexpr uint64_t kUndefined = 0xffffffff;  // NaN, and no index that is right anywhere

// The results "d|p", or only "d".
Operand const& value_of(Operand const& result) {
  return result.is(Operand::Kind::kVector) ? result.elements[0] : result;
}

Operand const& predicate_of(Operand const& result) {
  static Operand const nobody;
  return result.is(Operand::Kind::kVector) ? result.elements[1] : nobody;
}

// Calls compute(group) for every group of lanes that is complete.
template <class Compute>
Flow run_groups(Execution& x, Instruction const& in, Compute&& compute) {
  MaskGroups const groups = gather_groups(x, in, x.in(in.operands.back()));
  if (groups.count == 0) {
    return Flow::kConverge;
  }
  for (MaskGroup const& group : groups) {
    compute(group);
  }
  return Flow::kNext;
}

void check_operands(Instruction const& in, Modifiers const& modifiers, size_t count) {
  if (in.operands.size() != count) {
    modifiers.unsupported("it has " + std::to_string(in.operands.size()) + " operands, not " +
                          std::to_string(count));
  }
}

// Takes .sync, without which the old forms do not say who takes part.
void take_sync(Modifiers& modifiers) {
  if (!modifiers.take("sync")) {
    modifiers.unsupported("only the .sync form is defined from sm_70 on");
  }
}

// ---- shfl -----------------------------------------------------------------------------------------

enum class Shuffle { kUp, kDown, kBfly, kIdx };

struct SourceLane {
  int lane;
  bool in_range;
};

// The rule of the PTX ISA. `c` has the clamp in its low 5 bits and in bits 8-12 the segment mask:
// the bits of a lane number that say which segment the lane belongs to.
template <Shuffle kMode>
SourceLane source_lane(int lane, uint32_t b, uint32_t c) {
  int const by = int(b & 31);
  int const segment_mask = int(c >> 8 & 31);
  int const first = lane & segment_mask;
  int const last = first | (int(c & 31) & ~segment_mask);
  int source = lane;
  bool in_range = false;
  if constexpr (kMode == Shuffle::kUp) {
    source = lane - by;
    in_range = source >= last;  // the clamp of .up is a lower bound
  } else {
    source = kMode == Shuffle::kDown   ? lane + by
             : kMode == Shuffle::kBfly ? lane ^ by
                                       : first | (by & ~segment_mask);
    in_range = source <= last;
  }
  return {in_range ? source : lane, in_range};
}

void report_bad_source(Execution const& x, int lane, int source, Lanes mask) {
  bool const in_mask = (mask >> source & 1) != 0;
  machine().subject = &x.thread(lane);
  report("warp", "shfl: lane %d reads lane %d, which %s (member mask 0x%08x)", lane, source,
         in_mask ? "has exited or does not exist" : "does not take part", mask);
}

template <Shuffle kMode>
Flow run_shfl(Execution& x, Instruction const& in, Lanes) {
  Row const values = x.in(in.operands[1]);  // a copy: the result may be the same register
  Row const& offsets = x.in(in.operands[2]);
  Row const& clamps = x.in(in.operands[3]);
  return run_groups(x, in, [&](MaskGroup const& group) {
    Row& result = x.out(value_of(in.operands[0]));
    Row& predicate = x.out(predicate_of(in.operands[0]));
    for_each_lane(group.lanes, [&](int lane) {
      SourceLane const from =
          source_lane<kMode>(lane, uint32_t(offsets[lane]), uint32_t(clamps[lane]));
      bool const defined = (group.lanes >> from.lane & 1) != 0;
      if (!defined) {
        report_bad_source(x, lane, from.lane, group.mask);
      }
      result[lane] = defined ? uint32_t(values[from.lane]) : kUndefined;
      predicate[lane] = from.in_range;
    });
  });
}

void bind_shfl(Instruction& in) {
  static constexpr Handler kHandlers[] = {run_shfl<Shuffle::kUp>, run_shfl<Shuffle::kDown>,
                                          run_shfl<Shuffle::kBfly>, run_shfl<Shuffle::kIdx>};
  Modifiers modifiers(in);
  take_sync(modifiers);
  in.run = kHandlers[modifiers.take_one({"up", "down", "bfly", "idx"})];
  modifiers.take_one({"b32"});
  modifiers.finish();
  check_operands(in, modifiers, 5);
  in.splits = true;
}

// ---- vote -----------------------------------------------------------------------------------------

enum class Vote { kAll, kAny, kUni, kBallot };

template <Vote kVote>
Flow run_vote(Execution& x, Instruction const& in, Lanes) {
  return run_groups(x, in, [&](MaskGroup const& group) {
    Lanes ballot = 0;
    for_each_lane(group.lanes,
                  [&](int lane) { ballot |= Lanes(x.predicate(in.operands[1], lane)) << lane; });
    bool const all = ballot == group.lanes;
    uint64_t const answer = kVote == Vote::kAll   ? all
                            : kVote == Vote::kAny ? ballot != 0
                            : kVote == Vote::kUni ? all || ballot == 0
                                                  : ballot;
    Row& result = x.out(in.operands[0]);
    for_each_lane(group.lanes, [&](int lane) { result[lane] = answer; });
  });
}

void bind_vote(Instruction& in) {
  static constexpr Handler kHandlers[] = {run_vote<Vote::kAll>, run_vote<Vote::kAny>,
                                          run_vote<Vote::kUni>, run_vote<Vote::kBallot>};
  Modifiers modifiers(in);
  take_sync(modifiers);
  int const kind = modifiers.take_one({"all", "any", "uni", "ballot"});
  in.run = kHandlers[kind];
  modifiers.take_one({Vote(kind) == Vote::kBallot ? "b32" : "pred"});
  modifiers.finish();
  check_operands(in, modifiers, 3);
  in.splits = true;
}

// ---- match ----------------------------------------------------------------------------------------

template <class Value>
Lanes lanes_with_value(MaskGroup const& group, Row const& values, Value value) {
  Lanes same = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    same |= Lanes(Value(values[lane]) == value) << lane;
  }
  return same & group.lanes;
}

template <class Value>
Flow run_match_any(Execution& x, Instruction const& in, Lanes) {
  Row const values = x.in(in.operands[1]);
  return run_groups(x, in, [&](MaskGroup const& group) {
    Row& result = x.out(in.operands[0]);
    for_each_lane(group.lanes, [&](int lane) {
      result[lane] = lanes_with_value(group, values, Value(values[lane]));
    });
  });
}

template <class Value>
Flow run_match_all(Execution& x, Instruction const& in, Lanes) {
  Row const values = x.in(in.operands[1]);
  return run_groups(x, in, [&](MaskGroup const& group) {
    Value const first = Value(values[std::countr_zero(group.lanes)]);
    bool const all = lanes_with_value(group, values, first) == group.lanes;
    Row& result = x.out(value_of(in.operands[0]));
    Row& predicate = x.out(predicate_of(in.operands[0]));
    for_each_lane(group.lanes, [&](int lane) {
      result[lane] = all ? group.lanes : 0;
      predicate[lane] = all;
    });
  });
}

void bind_match(Instruction& in) {
  static constexpr Handler kHandlers[2][2] = {{run_match_any<uint32_t>, run_match_any<uint64_t>},
                                              {run_match_all<uint32_t>, run_match_all<uint64_t>}};
  Modifiers modifiers(in);
  take_sync(modifiers);
  int const kind = modifiers.take_one({"any", "all"});
  in.run = kHandlers[kind][modifiers.take_one({"b32", "b64"})];
  modifiers.finish();
  check_operands(in, modifiers, 3);
  in.splits = true;
}

// ---- redux ----------------------------------------------------------------------------------------

struct Min {
  auto operator()(auto a, auto b) const { return b < a ? b : a; }
};
struct Max {
  auto operator()(auto a, auto b) const { return a < b ? b : a; }
};

template <class Operation, class Value>
Flow run_redux(Execution& x, Instruction const& in, Lanes) {
  Row const& values = x.in(in.operands[1]);
  return run_groups(x, in, [&](MaskGroup const& group) {
    int const first = std::countr_zero(group.lanes);
    Value total = Value(values[first]);
    for_each_lane(group.lanes & (group.lanes - 1),
                  [&](int lane) { total = Operation{}(total, Value(values[lane])); });
    Row& result = x.out(in.operands[0]);
    for_each_lane(group.lanes, [&](int lane) { result[lane] = uint32_t(total); });
  });
}

struct FloatRedux : Detail {
  bool max = false;
  bool absolute = false;
  bool propagates_nan = false;
};

// NaN without .NaN is no value; -0 is below +0, which comparing the bits as sign and magnitude says.
Flow run_redux_float(Execution& x, Instruction const& in, Lanes) {
  auto const& detail = in.as<FloatRedux>();
  Row const& values = x.in(in.operands[1]);
  auto const below = [](float a, float b) {
    return a < b || (a == b && std::signbit(a) && !std::signbit(b));
  };
  return run_groups(x, in, [&](MaskGroup const& group) {
    constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
    float best = kNone;
    bool saw_nan = false;
    for_each_lane(group.lanes, [&](int lane) {
      float const value =
          detail.absolute ? std::fabs(as_float(values[lane])) : as_float(values[lane]);
      saw_nan |= std::isnan(value);
      bool const better = detail.max ? below(best, value) : below(value, best);
      best = std::isnan(best) || better ? value : best;
    });
    bool const none = std::isnan(best) || (saw_nan && detail.propagates_nan);
    Row& result = x.out(in.operands[0]);
    for_each_lane(group.lanes,
                  [&](int lane) { result[lane] = none ? 0x7fffffff : bits_of_float(best); });
  });
}

void bind_redux_float(Instruction& in, Modifiers& modifiers) {
  auto detail = std::make_unique<FloatRedux>();
  detail->max = modifiers.take_one({"min", "max"}) == 1;
  detail->absolute = modifiers.take("abs");
  detail->propagates_nan = modifiers.take("NaN");
  in.detail = std::move(detail);
  in.run = run_redux_float;
}

void bind_redux(Instruction& in) {
  static constexpr Handler kSigned[] = {run_redux<std::plus<>, uint32_t>, run_redux<Min, int32_t>,
                                        run_redux<Max, int32_t>};
  static constexpr Handler kUnsigned[] = {run_redux<std::plus<>, uint32_t>,
                                          run_redux<Min, uint32_t>, run_redux<Max, uint32_t>};
  static constexpr Handler kBits[] = {run_redux<std::bit_and<>, uint32_t>,
                                      run_redux<std::bit_or<>, uint32_t>,
                                      run_redux<std::bit_xor<>, uint32_t>};
  Modifiers modifiers(in);
  take_sync(modifiers);
  switch (modifiers.take_one({"s32", "u32", "b32", "f32"})) {
    case 0: in.run = kSigned[modifiers.take_one({"add", "min", "max"})]; break;
    case 1: in.run = kUnsigned[modifiers.take_one({"add", "min", "max"})]; break;
    case 2: in.run = kBits[modifiers.take_one({"and", "or", "xor"})]; break;
    default: bind_redux_float(in, modifiers);
  }
  modifiers.finish();
  check_operands(in, modifiers, 3);
  in.splits = true;
}

// ---- elect ----------------------------------------------------------------------------------------

// PTX leaves open which lane leads, only that it is always the same one of a mask.
Flow run_elect(Execution& x, Instruction const& in, Lanes) {
  return run_groups(x, in, [&](MaskGroup const& group) {
    int const leader = std::countr_zero(group.lanes);
    Row& result = x.out(value_of(in.operands[0]));
    Row& predicate = x.out(predicate_of(in.operands[0]));
    for_each_lane(group.lanes, [&](int lane) {
      result[lane] = uint64_t(leader);
      predicate[lane] = lane == leader;
    });
  });
}

void bind_elect(Instruction& in) {
  Modifiers modifiers(in);
  take_sync(modifiers);
  modifiers.finish();
  check_operands(in, modifiers, 2);
  in.run = run_elect;
  in.splits = true;
}

// ---- activemask -----------------------------------------------------------------------------------

Flow run_activemask(Execution& x, Instruction const& in, Lanes lanes) {
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { result[lane] = lanes; });
  return Flow::kNext;
}

void bind_activemask(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"b32"});
  modifiers.finish();
  check_operands(in, modifiers, 1);
  in.run = run_activemask;
}

}  // namespace

void add_warp(BinderTable& table) {
  table["shfl"] = bind_shfl;
  table["vote"] = bind_vote;
  table["match"] = bind_match;
  table["redux"] = bind_redux;
  table["elect"] = bind_elect;
  table["activemask"] = bind_activemask;
}

}  // namespace hostsim
