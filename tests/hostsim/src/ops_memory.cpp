// Loads and stores, and the instructions about addresses.

#include "ops_memory.h"

#include <cstring>

#include "bind.h"
#include "machine.h"

namespace hostsim {
namespace {

struct LoadStore : Detail {
  Space space = Space::kGeneric;
  MemoryOrder order = MemoryOrder::kWeak;
  FenceScope scope = kWideScope;
  int count = 1;      // elements per lane
  int bytes = 4;      // per element
  int sign_bits = 0;  // of a signed element, 0 for others
  bool non_coherent = false;
  std::string name;  // the opcode, for reports
};

// ---- Executing --------------------------------------------------------------------------------------

Operand const& element(Operand const& operand, int i) {
  return operand.is(Operand::Kind::kVector) ? operand.elements[size_t(i)] : operand;
}

char* checked(LoadStore const& op, Execution& x, Operand const& memory, int lane, Access access) {
  uint64_t const address = x.address(memory, lane);
  size_t const size = size_t(op.count) * size_t(op.bytes);
  if (address % size != 0) {
    fault("align", "%s: address 0x%llx is not a multiple of %zu", op.name.c_str(),
          (unsigned long long)address, size);
  }
  Thread& thread = x.thread(lane);
  Actor const actor = op.order == MemoryOrder::kWeak ? plain_actor(thread) : atomic_actor(thread);
  return is_shared(op.space) ? touch_shared(actor, uint32_t(address), size, access, op.name.c_str(),
                                            op.space == Space::kSharedCluster)
                             : touch(actor, address, size, access, op.name.c_str());
}

template <class Unsigned>
uint64_t load_element(char const* from) {
  Unsigned value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

uint64_t load_bytes(char const* from, int bytes, int sign_bits) {
  switch (bytes) {
    case 1: {
      uint64_t const value = load_element<uint8_t>(from);
      return sign_bits != 0 ? uint64_t(int64_t(int8_t(value))) : value;
    }
    case 2: {
      uint64_t const value = load_element<uint16_t>(from);
      return sign_bits != 0 ? uint64_t(int64_t(int16_t(value))) : value;
    }
    case 4: {
      uint64_t const value = load_element<uint32_t>(from);
      return sign_bits != 0 ? uint64_t(int64_t(int32_t(value))) : value;
    }
    default: return load_element<uint64_t>(from);
  }
}

Flow load(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& op = in.as<LoadStore>();
  Operand const& memory = in.operands[1];
  for_each_lane(lanes, [&](int lane) {
    char const* const from = checked(op, x, memory, lane, Access::kRead);
    if (op.non_coherent) {
      check_non_coherent(x.thread(lane), x.address(memory, lane),
                         size_t(op.count) * size_t(op.bytes), op.name.c_str());
    }
    if (op.order != MemoryOrder::kWeak) {
      synchronize_read(x.thread(lane), from, op.scope, op.order);
    }
    for (int i = 0; i < op.count; ++i) {
      x.out(element(in.operands[0], i))[lane] =
          load_bytes(from + i * op.bytes, op.bytes, op.sign_bits);
    }
  });
  // A strong load is what polling loops are made of.
  return op.order == MemoryOrder::kWeak ? Flow::kNext : x.yield();
}

Flow store(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& op = in.as<LoadStore>();
  ++machine().progress;
  for_each_lane(lanes, [&](int lane) {
    char* const to = checked(op, x, in.operands[0], lane, Access::kWrite);
    for (int i = 0; i < op.count; ++i) {
      uint64_t const value = x.in(element(in.operands[1], i))[lane];
      std::memcpy(to + i * op.bytes, &value, size_t(op.bytes));
    }
    if (op.order != MemoryOrder::kWeak) {
      synchronize_write(x.thread(lane), to, op.scope, op.order);
    }
  });
  return Flow::kNext;
}

Flow shared_to_generic(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& from = x.in(in.operands[1]);
  Row& to = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { to[lane] = to_generic(uint32_t(from[lane])); });
  return Flow::kNext;
}

Flow generic_to_shared(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& from = x.in(in.operands[1]);
  Row& to = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { to[lane] = to_shared(from[lane]); });
  return Flow::kNext;
}

// Other spaces have the host's addresses as they are.
Flow copy_address(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& from = x.in(in.operands[1]);
  Row& to = x.out(in.operands[0]);
  uint64_t const offset = uint64_t(in.operands[1].offset);
  for_each_lane(lanes, [&](int lane) { to[lane] = from[lane] + offset; });
  return Flow::kNext;
}

struct SpaceQuery : Detail {
  Space space = Space::kShared;
};

Flow is_in_space(Execution& x, Instruction const& in, Lanes lanes) {
  Space const space = in.as<SpaceQuery>().space;
  Row const& from = x.in(in.operands[1]);
  Row& to = x.out(in.operands[0]);
  uint32_t const local_bytes = x.grid().kernel->local_bytes;
  for_each_lane(lanes, [&](int lane) {
    uint32_t const shared = to_shared(from[lane]);
    bool const is_shared = shared != 0;
    bool const is_local =
        from[lane] - reinterpret_cast<uint64_t>(x.thread(lane).local) < local_bytes;
    switch (space) {
      case Space::kSharedCluster: to[lane] = is_shared; break;
      case Space::kShared: to[lane] = is_shared && shared_owner(shared) == &x.block(); break;
      case Space::kLocal: to[lane] = is_local; break;
      default: to[lane] = !is_shared && !is_local; break;
    }
  });
  return Flow::kNext;
}

Flow no_effect(Execution&, Instruction const&, Lanes) { return Flow::kNext; }

// ---- Binding ------------------------------------------------------------------------------------

void bind_load_store(Instruction& in, bool is_load) {
  Modifiers modifiers(in);
  auto op = std::make_unique<LoadStore>();
  op->name = in.opcode[0];
  for (size_t i = 1; i < in.opcode.size(); ++i) {
    op->name += "." + in.opcode[i];
  }
  Type const type = modifiers.take_type();
  if (type == Type::kB128 || type == Type::kPred) {
    modifiers.unsupported("type");
  }
  op->bytes = bytes_of(type);
  op->sign_bits = is_signed(type) ? bits_of(type) : 0;
  op->order = take_order(modifiers);
  op->scope = take_scope(modifiers);
  op->space = take_space(modifiers);
  op->non_coherent = modifiers.take("nc");
  int const vector = modifiers.take_any({"v2", "v4", "v8"});
  op->count = vector < 0 ? 1 : 2 << vector;
  modifiers.take_hints();
  modifiers.finish();
  Operand const& value = in.operands.at(is_load ? 0 : 1);
  size_t const elements = value.is(Operand::Kind::kVector) ? value.elements.size() : 1;
  if (elements != size_t(op->count)) {
    modifiers.unsupported("number of vector elements");
  }
  in.run = is_load ? load : store;
  in.detail = std::move(op);
}

void bind_cvta(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_type();
  bool const to = modifiers.take("to");
  Space const space = take_space(modifiers);
  modifiers.finish();
  in.run = !is_shared(space) ? copy_address : to ? generic_to_shared : shared_to_generic;
}

void bind_isspacep(Instruction& in) {
  Modifiers modifiers(in);
  auto query = std::make_unique<SpaceQuery>();
  query->space = take_space(modifiers);
  modifiers.finish();
  if (query->space == Space::kParameter || query->space == Space::kConstant) {
    modifiers.unsupported("space");
  }
  in.run = is_in_space;
  in.detail = std::move(query);
}

// A prefetch may name any address, and changes nothing but time.
void bind_prefetch(Instruction& in) { in.run = no_effect; }

}  // namespace

// ---- For other families ---------------------------------------------------------------------------

bool is_shared(Space space) { return space == Space::kShared || space == Space::kSharedCluster; }

Space take_space(Modifiers& modifiers) {
  static constexpr Space kSpaces[] = {Space::kGlobal,        Space::kShared,    Space::kShared,
                                      Space::kSharedCluster, Space::kLocal,     Space::kParameter,
                                      Space::kParameter,     Space::kParameter, Space::kConstant};
  int const which = modifiers.take_any({"global", "shared", "shared::cta", "shared::cluster",
                                        "local", "param", "param::entry", "param::func", "const"});
  return which < 0 ? Space::kGeneric : kSpaces[which];
}

MemoryOrder take_order(Modifiers& modifiers) {
  static constexpr MemoryOrder kOrders[] = {MemoryOrder::kWeak,          MemoryOrder::kRelaxed,
                                            MemoryOrder::kRelaxed,       MemoryOrder::kRelaxed,
                                            MemoryOrder::kAcquire,       MemoryOrder::kRelease,
                                            MemoryOrder::kAcquireRelease};
  int const which =
      modifiers.take_any({"weak", "volatile", "mmio", "relaxed", "acquire", "release", "acq_rel"});
  return which < 0 ? MemoryOrder::kWeak : kOrders[which];
}

FenceScope take_scope(Modifiers& modifiers) {
  return modifiers.take_any({"cta", "cluster", "gpu", "sys"}) == 0 ? kBlockScope : kWideScope;
}

void fence(Thread& thread, FenceScope scope) {
  if (!machine().racing) {
    return;
  }
  ThreadClock& clock = thread.clock;
  clock.seen.join(clock.pending[kBlockScope]);
  if (scope == kWideScope) {
    clock.seen.join(clock.pending[kWideScope]);
  }
  Clock const released = snapshot(thread);
  clock.released[kBlockScope] = released;
  if (scope == kWideScope) {
    clock.released[kWideScope] = released;
  }
  ++clock.epoch;
}

void synchronize_read(Thread& thread, void const* address, FenceScope scope, MemoryOrder order) {
  if (!machine().racing) {
    return;
  }
  SyncVariable& variable = thread.grid().sync_variables[reinterpret_cast<uint64_t>(address)];
  if (scope == kWideScope) {
    thread.clock.pending[kWideScope].join(variable.wide.clock());
  }
  thread.clock.pending[kBlockScope].join(variable.block[thread.block().index].clock());
  if (order == MemoryOrder::kAcquire || order == MemoryOrder::kAcquireRelease) {
    fence(thread, scope);
  }
}

void synchronize_write(Thread& thread, void const* address, FenceScope scope, MemoryOrder order) {
  if (!machine().racing) {
    return;
  }
  if (order == MemoryOrder::kRelease || order == MemoryOrder::kAcquireRelease) {
    fence(thread, scope);
  }
  SyncVariable& variable = thread.grid().sync_variables[reinterpret_cast<uint64_t>(address)];
  if (scope == kWideScope) {
    variable.wide.join(thread.clock.released[kWideScope]);
  }
  variable.block[thread.block().index].join(thread.clock.released[kBlockScope]);
}

void add_memory(BinderTable& table) {
  table["ld"] = [](Instruction& in) { bind_load_store(in, true); };
  table["ldu"] = [](Instruction& in) { bind_load_store(in, true); };
  table["st"] = [](Instruction& in) { bind_load_store(in, false); };
  table["cvta"] = bind_cvta;
  table["isspacep"] = bind_isspacep;
  table["prefetch"] = bind_prefetch;
  table["prefetchu"] = bind_prefetch;
}

}  // namespace hostsim
