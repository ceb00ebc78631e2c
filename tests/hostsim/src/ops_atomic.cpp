// atom and red: one read-modify-write per lane. The lanes of a warp take their turns in an order that
// depends on the settings, because the PTX ISA promises none.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "bind.h"
#include "machine.h"
#include "ops_memory.h"

namespace hostsim {
namespace {

// What becomes of memory: (old value, operand b, operand c) -> new value, as bits of the type.
using Update = uint64_t (*)(uint64_t old, uint64_t b, uint64_t c);

struct Atomic : Detail {
  Space space = Space::kGeneric;
  MemoryOrder order = MemoryOrder::kRelaxed;
  FenceScope scope = kWideScope;
  Update update = nullptr;
  Update update_shared = nullptr;  // the same, but for the one operation that differs there
  int bytes = 4;
  int count = 1;             // elements per lane, each atomic on its own
  bool returns_old = false;  // atom, not red
  std::string name;
};

// ---- Updates ------------------------------------------------------------------------------------

template <class T>
T as(uint64_t bits) {
  if constexpr (std::is_same_v<T, float>) {
    return as_float(bits);
  } else if constexpr (std::is_same_v<T, double>) {
    return as_double(bits);
  } else {
    return T(bits);
  }
}

template <class T>
uint64_t bits_of(T value) {
  if constexpr (std::is_same_v<T, float>) {
    return bits_of_float(value);
  } else if constexpr (std::is_same_v<T, double>) {
    return bits_of_double(value);
  } else {
    return uint64_t(std::make_unsigned_t<T>(value));
  }
}

template <class T>
uint64_t add(uint64_t old, uint64_t b, uint64_t) {
  return bits_of<T>(T(as<T>(old) + as<T>(b)));
}
// PTX: float32 addition in global memory flushes subnormal operands and results, in shared memory not.
uint64_t add_flushing(uint64_t old, uint64_t b, uint64_t) {
  auto const flushed = [](float x) {
    return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x;
  };
  return bits_of_float(flushed(flushed(as_float(old)) + flushed(as_float(b))));
}
template <class T>
uint64_t min(uint64_t old, uint64_t b, uint64_t) {
  return bits_of<T>(std::min(as<T>(old), as<T>(b)));
}
template <class T>
uint64_t max(uint64_t old, uint64_t b, uint64_t) {
  return bits_of<T>(std::max(as<T>(old), as<T>(b)));
}
uint64_t bit_and(uint64_t old, uint64_t b, uint64_t) { return old & b; }
uint64_t bit_or(uint64_t old, uint64_t b, uint64_t) { return old | b; }
uint64_t bit_xor(uint64_t old, uint64_t b, uint64_t) { return old ^ b; }
uint64_t exchange(uint64_t, uint64_t b, uint64_t) { return b; }
template <class T>
uint64_t compare_and_swap(uint64_t old, uint64_t b, uint64_t c) {
  return T(old) == T(b) ? c : old;
}
// Wraps at the operand: a counter modulo b + 1.
uint64_t increment(uint64_t old, uint64_t b, uint64_t) {
  return uint32_t(old) >= uint32_t(b) ? 0 : old + 1;
}
uint64_t decrement(uint64_t old, uint64_t b, uint64_t) {
  return uint32_t(old) == 0 || uint32_t(old) > uint32_t(b) ? uint32_t(b) : old - 1;
}

enum class Choice { kAdd, kMin, kMax };

template <Type type, Choice choice>
uint64_t small_float(uint64_t old, uint64_t b) {
  double const x = decode(type, old & 0xffff);
  double const y = decode(type, b & 0xffff);
  double const result = choice == Choice::kAdd   ? x + y
                        : choice == Choice::kMin ? std::fmin(x, y)
                                                 : std::fmax(x, y);
  return encode(type, result);
}
template <Type type, Choice choice>
uint64_t scalar_float(uint64_t old, uint64_t b, uint64_t) {
  return small_float<type, choice>(old, b);
}
template <Type type, Choice choice>
uint64_t packed_float(uint64_t old, uint64_t b, uint64_t) {
  return small_float<type, choice>(old >> 16, b >> 16) << 16 | small_float<type, choice>(old, b);
}

template <Choice choice>
Update float16_update(Type type) {
  switch (type) {
    case Type::kF16: return scalar_float<Type::kF16, choice>;
    case Type::kBF16: return scalar_float<Type::kBF16, choice>;
    case Type::kF16x2: return packed_float<Type::kF16, choice>;
    case Type::kBF16x2: return packed_float<Type::kBF16, choice>;
    default: return nullptr;
  }
}

Update add_update(Type type) {
  switch (type) {
    case Type::kU32: return add<uint32_t>;
    case Type::kS32: return add<int32_t>;
    case Type::kU64: return add<uint64_t>;
    case Type::kS64: return add<int64_t>;
    case Type::kF32: return add_flushing;
    case Type::kF64: return add<double>;
    default: return float16_update<Choice::kAdd>(type);
  }
}

Update min_update(Type type) {
  switch (type) {
    case Type::kU32: return min<uint32_t>;
    case Type::kS32: return min<int32_t>;
    case Type::kU64: return min<uint64_t>;
    case Type::kS64: return min<int64_t>;
    default: return float16_update<Choice::kMin>(type);
  }
}

Update max_update(Type type) {
  switch (type) {
    case Type::kU32: return max<uint32_t>;
    case Type::kS32: return max<int32_t>;
    case Type::kU64: return max<uint64_t>;
    case Type::kS64: return max<int64_t>;
    default: return float16_update<Choice::kMax>(type);
  }
}

Update choose_update(int operation, Type type) {
  bool const bits = type == Type::kB32 || type == Type::kB64;
  switch (operation) {
    case 0: return add_update(type);
    case 1: return min_update(type);
    case 2: return max_update(type);
    case 3: return bits ? bit_and : nullptr;
    case 4: return bits ? bit_or : nullptr;
    case 5: return bits ? bit_xor : nullptr;
    case 6: return bits ? exchange : nullptr;
    case 7:
      return type == Type::kB16   ? compare_and_swap<uint16_t>
             : type == Type::kB32 ? compare_and_swap<uint32_t>
             : type == Type::kB64 ? compare_and_swap<uint64_t>
                                  : nullptr;
    case 8: return type == Type::kU32 ? increment : nullptr;
    case 9: return type == Type::kU32 ? decrement : nullptr;
    default: return nullptr;
  }
}

// ---- Executing ------------------------------------------------------------------------------------

std::array<int, kWarpSize> lane_order() {
  std::array<int, kWarpSize> order;
  std::iota(order.begin(), order.end(), 0);
  Machine& m = machine();
  if (m.settings.order == Order::kReverse) {
    std::reverse(order.begin(), order.end());
  } else if (m.settings.order == Order::kRandom) {
    std::shuffle(order.begin(), order.end(), m.random);
  }
  return order;
}

Operand const& element(Operand const& operand, int i) {
  return operand.is(Operand::Kind::kVector) ? operand.elements[size_t(i)] : operand;
}

void update_memory(Atomic const& op, Execution& x, Instruction const& in, int lane) {
  size_t const first = op.returns_old ? 1 : 0;  // operand: the address, then b and perhaps c
  Operand const& memory = in.operands[first];
  uint64_t const address = x.address(memory, lane);
  size_t const size = size_t(op.bytes) * size_t(op.count);
  if (address % size != 0) {
    fault("align", "%s: address 0x%llx is not a multiple of %zu", op.name.c_str(),
          (unsigned long long)address, size);
  }
  Thread& thread = x.thread(lane);
  Actor const actor = atomic_actor(thread);
  char* const place = is_shared(op.space)
                          ? touch_shared(actor, uint32_t(address), size, Access::kReadWrite,
                                         op.name.c_str(), op.space == Space::kSharedCluster)
                          : touch(actor, address, size, Access::kReadWrite, op.name.c_str());
  bool const in_shared = is_shared(op.space) || to_shared(address) != 0;
  Update const update = in_shared ? op.update_shared : op.update;
  bool const swaps = in.operands.size() > first + 2;
  for (int i = 0; i < op.count; ++i) {
    uint64_t const b = x.in(element(in.operands[first + 1], i))[lane];
    uint64_t const c = swaps ? x.in(element(in.operands[first + 2], i))[lane] : 0;
    uint64_t old = 0;
    std::memcpy(&old, place + i * op.bytes, size_t(op.bytes));
    uint64_t const updated = update(old, b, c);
    std::memcpy(place + i * op.bytes, &updated, size_t(op.bytes));
    if (op.returns_old) {
      x.out(element(in.operands[0], i))[lane] = old;
    }
    if (std::memcmp(&old, &updated, size_t(op.bytes)) != 0) {
      ++machine().progress;
    }
  }
  // Reading first: what this read brings, its own write passes on, as in a release sequence.
  bool const acquires =
      op.order == MemoryOrder::kAcquire || op.order == MemoryOrder::kAcquireRelease;
  bool const releases =
      op.order == MemoryOrder::kRelease || op.order == MemoryOrder::kAcquireRelease;
  synchronize_write(thread, place, op.scope,
                    releases ? MemoryOrder::kRelease : MemoryOrder::kRelaxed);
  synchronize_read(thread, place, op.scope,
                   acquires ? MemoryOrder::kAcquire : MemoryOrder::kRelaxed);
}

Flow atomic(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& op = in.as<Atomic>();
  for (int const lane : lane_order()) {
    if ((lanes >> lane & 1) != 0) {
      update_memory(op, x, in, lane);
    }
  }
  return op.returns_old ? x.yield() : Flow::kNext;  // a compare-and-swap may be polling
}

// ---- Binding --------------------------------------------------------------------------------------

void bind_atomic(Instruction& in) {
  Modifiers modifiers(in);
  auto op = std::make_unique<Atomic>();
  op->returns_old = in.opcode[0] == "atom";
  op->name = in.opcode[0];
  for (size_t i = 1; i < in.opcode.size(); ++i) {
    op->name += "." + in.opcode[i];
  }
  Type const type = modifiers.take_type();
  op->bytes = bytes_of(type);
  MemoryOrder const order = take_order(modifiers);
  op->order = order == MemoryOrder::kWeak ? MemoryOrder::kRelaxed : order;
  op->scope = take_scope(modifiers);
  op->space = take_space(modifiers);
  int const operation =
      modifiers.take_one({"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"});
  modifiers.take("noftz");
  int const vector = modifiers.take_any({"v2", "v4", "v8"});
  op->count = vector < 0 ? 1 : 2 << vector;
  bool const has_policy = modifiers.take("L2::cache_hint");
  modifiers.finish();
  op->update = choose_update(operation, type);
  if (op->update == nullptr) {
    modifiers.unsupported("operation on this type");
  }
  op->update_shared = op->update == add_flushing ? add<float> : op->update;
  if (has_policy) {
    in.operands.pop_back();
  }
  size_t const expected = (op->returns_old ? 2u : 1u) + (operation == 7 ? 2u : 1u);
  if (in.operands.size() != expected) {
    modifiers.unsupported("number of operands");
  }
  in.run = atomic;
  in.detail = std::move(op);
}

}  // namespace

void add_atomic(BinderTable& table) {
  table["atom"] = bind_atomic;
  table["red"] = bind_atomic;
}

}  // namespace hostsim
