// Logic on all bits of registers and on predicates, lop3, and shifts.
#include <algorithm>
#include <bit>

#include "elementwise.h"

namespace hostsim {

namespace {

// ---- Logic ------------------------------------------------------------------------------------------

struct And {
  template <class T>
  T operator()(T a, T b) const {
    return a & b;
  }
};

struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return a | b;
  }
};

struct Xor {
  template <class T>
  T operator()(T a, T b) const {
    return a ^ b;
  }
};

struct Not {
  template <class T>
  T operator()(T a) const {
    return T(~a);
  }
  bool operator()(bool a) const { return !a; }
};

// 1 if all bits are zero.
struct LogicalNot {
  template <class T>
  T operator()(T a) const {
    return a == 0;
  }
};

template <int kSources, class Function, size_t... kSource>
void apply_to_predicates(Execution& x, Instruction const& in, Lanes lanes,
                         std::index_sequence<kSource...>) {
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) {
    result[lane] = Function()(x.predicate(in.operands[kSource + 1], lane)...);
  });
}

template <int kSources, class Function>
Flow run_predicates(Execution& x, Instruction const& in, Lanes lanes) {
  apply_to_predicates<kSources, Function>(x, in, lanes,
                                          std::make_index_sequence<size_t(kSources)>());
  return Flow::kNext;
}

template <int kSources, class Function>
void bind_logic(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  modifiers.finish();
  if (type == Type::kPred) {
    bind_elementwise(in, {&run_predicates<kSources, Function>, kSources});
  } else {
    bind_elementwise(in, for_integer<kSources, Function>(type));
  }
}

void bind_cnot(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  modifiers.finish();
  bind_elementwise(in, for_integer<1, LogicalNot>(type));
}

// ---- lop3 -------------------------------------------------------------------------------------------

// Any function of three bits: `table` has its result for bits a, b, c at a * 4 + b * 2 + c.
class Lookup {
 public:
  // As a polynomial over bits, where xor adds and and multiplies: the coefficient of a product of
  // variables is the sum of the results for all subsets of them.
  explicit Lookup(uint32_t table) {
    for (uint32_t product = 0; product < 8; ++product) {
      uint32_t coefficient = 0;
      for (uint32_t subset = 0; subset < 8; ++subset) {
        coefficient ^= (subset & ~product) == 0 ? table >> subset & 1 : 0;
      }
      k_[product] = 0 - coefficient;
    }
  }

  uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {
    uint32_t const with_a = k_[4] ^ (k_[5] & c) ^ ((k_[6] ^ (k_[7] & c)) & b);
    uint32_t const without_a = k_[0] ^ (k_[1] & c) ^ ((k_[2] ^ (k_[3] & c)) & b);
    return without_a ^ (with_a & a);
  }

 private:
  uint32_t k_[8];
};

// Calls store(lane, result) for each lane. The table is an immediate: the same in every lane.
template <class Store>
void look_up(Execution& x, Instruction const& in, Lanes lanes, Store&& store) {
  Row const& a = x.in(in.operands[1]);
  Row const& b = x.in(in.operands[2]);
  Row const& c = x.in(in.operands[3]);
  Lookup const lookup(uint32_t(x.in(in.operands[4])[std::countr_zero(lanes)]));
  for_each_lane(lanes, [&](int lane) {
    store(lane, lookup(uint32_t(a[lane]), uint32_t(b[lane]), uint32_t(c[lane])));
  });
}

Flow run_lop3(Execution& x, Instruction const& in, Lanes lanes) {
  Row& result = x.out(in.operands[0]);
  look_up(x, in, lanes, [&](int lane, uint32_t value) { result[lane] = value; });
  return Flow::kNext;
}

template <class Function>
Flow run_lop3_predicate(Execution& x, Instruction const& in, Lanes lanes) {
  Row& result = x.out(in.operands[0].elements[0]);
  Row& predicate = x.out(in.operands[0].elements[1]);
  look_up(x, in, lanes, [&](int lane, uint32_t value) {
    bool const other = x.predicate(in.operands[5], lane);
    result[lane] = value;
    predicate[lane] = Function()(value != 0, other);
  });
  return Flow::kNext;
}

void bind_lop3(Instruction& in) {
  Modifiers modifiers(in);
  int const combine = modifiers.take_any({"or", "and"});
  modifiers.take_one({"b32"});
  modifiers.finish();
  if (combine < 0) {
    bind_elementwise(in, {&run_lop3, 4});
    return;
  }
  if (in.operands.size() != 6 || in.operands[0].elements.size() != 2) {
    modifiers.unsupported("expected d|p, a, b, c, table, q");
  }
  in.run = combine == 0 ? &run_lop3_predicate<Or> : &run_lop3_predicate<And>;
}

// ---- Shifts -----------------------------------------------------------------------------------------

// Shift amounts are u32, and those of the width or more shift everything out.
struct ShiftLeft {
  template <class T>
  T operator()(T a, uint32_t amount) const {
    return amount >= 8 * sizeof(T) ? T(0) : T(uint64_t(a) << amount);
  }
};

struct ShiftRight {
  template <class T>
  T operator()(T a, uint32_t amount) const {
    if (amount >= 8 * sizeof(T)) {
      return a < 0 ? T(-1) : T(0);
    }
    return T(a >> amount);
  }
};

template <class T, class Function>
struct ShiftOp {
  static uint64_t apply(uint64_t a, uint64_t amount) {
    return bits_of_integer(Function()(T(a), uint32_t(amount)));
  }
};

template <class Function>
void bind_shift(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  modifiers.finish();
  bind_elementwise(in, for_integer<2, Function, ShiftOp>(type));
}

// shf: a 64-bit value {high, low} is shifted, and 32 bits of it are kept.
template <bool kLeft, bool kClamp>
struct FunnelShift {
  static uint64_t apply(uint64_t low, uint64_t high, uint64_t amount) {
    uint64_t const value = high << 32 | uint32_t(low);
    uint32_t const n = kClamp ? std::min(uint32_t(amount), 32u) : uint32_t(amount) & 31;
    return kLeft ? uint32_t((value << n) >> 32) : uint32_t(value >> n);
  }
};

void bind_shf(Instruction& in) {
  Modifiers modifiers(in);
  bool const left = modifiers.take_one({"l", "r"}) == 0;
  bool const clamp = modifiers.take_one({"clamp", "wrap"}) == 0;
  modifiers.take_one({"b32"});
  modifiers.finish();
  if (left) {
    bind_elementwise(in, clamp ? elementwise<3, FunnelShift<true, true>>()
                               : elementwise<3, FunnelShift<true, false>>());
  } else {
    bind_elementwise(in, clamp ? elementwise<3, FunnelShift<false, true>>()
                               : elementwise<3, FunnelShift<false, false>>());
  }
}

}  // namespace

void add_bits(BinderTable& table) {
  table["and"] = bind_logic<2, And>;
  table["or"] = bind_logic<2, Or>;
  table["xor"] = bind_logic<2, Xor>;
  table["not"] = bind_logic<1, Not>;
  table["cnot"] = bind_cnot;
  table["lop3"] = bind_lop3;
  table["shl"] = bind_shift<ShiftLeft>;
  table["shr"] = bind_shift<ShiftRight>;
  table["shf"] = bind_shf;
}

}  // namespace hostsim
