// Integer arithmetic of any precision: add.cc, addc, sub.cc, subc, mad.cc, madc. They hand a carry on
// in a flag of the thread, Warp::carry.
#include "elementwise.h"

namespace hostsim {

namespace {

template <class T>
struct Sum {
  T value;
  bool carry;
};

template <class T>
Sum<T> add(T a, T b, bool carry) {
  unsigned __int128 const sum = static_cast<unsigned __int128>(a) + b + carry;
  return {T(sum), (sum >> 8 * sizeof(T)) != 0};
}

// The operations, on unsigned T. The carry out of a subtraction is its borrow.
struct AddCarry {
  static constexpr int kSources = 2;
  template <class T>
  static Sum<T> apply(T a, T b, T, bool carry) {
    return add(a, b, carry);
  }
};

struct SubCarry {
  static constexpr int kSources = 2;
  template <class T>
  static Sum<T> apply(T a, T b, T, bool borrow) {
    Sum<T> const sum = add(a, T(~b), !borrow);
    return {sum.value, !sum.carry};
  }
};

struct MadLowCarry {
  static constexpr int kSources = 3;
  template <class T>
  static Sum<T> apply(T a, T b, T c, bool carry) {
    return add(T(a * b), c, carry);
  }
};

struct MadHighCarry {
  static constexpr int kSources = 3;
  template <class T>
  static Sum<T> apply(T a, T b, T c, bool carry) {
    unsigned __int128 const product = static_cast<unsigned __int128>(a) * b;
    return add(T(product >> 8 * sizeof(T)), c, carry);
  }
};

struct MadHighSignedCarry {
  static constexpr int kSources = 3;
  template <class T>
  static Sum<T> apply(T a, T b, T c, bool carry) {
    using Signed = std::make_signed_t<T>;
    __int128 const product = static_cast<__int128>(Signed(a)) * Signed(b);
    return add(T(product >> 8 * sizeof(T)), c, carry);
  }
};

template <class T, class Op, bool kCarryIn, bool kCarryOut>
Flow run_carry(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& a = x.in(in.operands[1]);
  Row const& b = x.in(in.operands[2]);
  Row const& c = x.in(in.operands[Op::kSources]);  // of a sum, b once more
  Row& result = x.out(in.operands[0]);
  Lanes const carry_in = kCarryIn ? x.warp.carry : 0;
  Lanes carry_out = 0;
  for_each_lane(lanes, [&](int lane) {
    Sum<T> const sum = Op::apply(T(a[lane]), T(b[lane]), T(c[lane]), carry_in >> lane & 1);
    result[lane] = sum.value;
    carry_out |= Lanes(sum.carry) << lane;
  });
  if (kCarryOut) {
    x.warp.carry = (x.warp.carry & ~lanes) | carry_out;
  }
  return Flow::kNext;
}

template <class Op, bool kCarryIn, bool kCarryOut>
Elementwise for_carry(Type type) {
  switch (type) {
    case Type::kU32:
    case Type::kS32: return {&run_carry<uint32_t, Op, kCarryIn, kCarryOut>, Op::kSources};
    case Type::kU64:
    case Type::kS64: return {&run_carry<uint64_t, Op, kCarryIn, kCarryOut>, Op::kSources};
    default: return {};
  }
}

// `Op`.cc, which starts a chain, or with kCarryIn its successors, of which the last has no .cc.
template <class Op, bool kCarryIn>
Elementwise for_chain(Type type, bool carry_out) {
  return carry_out ? for_carry<Op, kCarryIn, true>(type) : for_carry<Op, kCarryIn, false>(type);
}

template <class Op, bool kCarryIn>
void bind_sum(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  bool const carry_out = modifiers.take("cc");
  modifiers.finish();
  bind_elementwise(in, for_chain<Op, kCarryIn>(type, carry_out));
}

template <bool kCarryIn>
void bind_mad(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  bool const high = modifiers.take_one({"lo", "hi"}) == 1;
  bool const carry_out = modifiers.take("cc");
  modifiers.finish();
  if (!high) {
    bind_elementwise(in, for_chain<MadLowCarry, kCarryIn>(type, carry_out));
  } else if (is_signed(type)) {
    bind_elementwise(in, for_chain<MadHighSignedCarry, kCarryIn>(type, carry_out));
  } else {
    bind_elementwise(in, for_chain<MadHighCarry, kCarryIn>(type, carry_out));
  }
}

}  // namespace

void add_carry(BinderTable& table) {
  table["add.cc"] = bind_sum<AddCarry, false>;
  table["addc"] = bind_sum<AddCarry, true>;
  table["sub.cc"] = bind_sum<SubCarry, false>;
  table["subc"] = bind_sum<SubCarry, true>;
  table["mad.lo.cc"] = bind_mad<false>;
  table["mad.hi.cc"] = bind_mad<false>;
  table["madc"] = bind_mad<true>;
}

}  // namespace hostsim
