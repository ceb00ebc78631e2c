// Comparisons: setp, set. A comparison of a whole warp gives the set of lanes for which it holds.
#include <array>

#include "elementwise.h"
#include "float_format.h"

namespace hostsim {

namespace {

enum class Compare {
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kLo,
  kLs,
  kHi,
  kHs,  // of unsigned integers: lt, le, gt, ge
  kEqu,
  kNeu,
  kLtu,
  kLeu,
  kGtu,
  kGeu,  // of floats: or either is NaN
  kNum,
  kNan,  // both are numbers; either is NaN
};
constexpr int kNumCompares = 18;

template <Compare kCompare, class T>
bool holds(T a, T b) {
  bool const unordered = a != a || b != b;
  switch (kCompare) {
    case Compare::kEq: return a == b;
    case Compare::kNe: return a != b && !unordered;
    case Compare::kLo:
    case Compare::kLt: return a < b;
    case Compare::kLs:
    case Compare::kLe: return a <= b;
    case Compare::kHi:
    case Compare::kGt: return a > b;
    case Compare::kHs:
    case Compare::kGe: return a >= b;
    case Compare::kEqu: return a == b || unordered;
    case Compare::kNeu: return a != b;
    case Compare::kLtu: return a < b || unordered;
    case Compare::kLeu: return a <= b || unordered;
    case Compare::kGtu: return a > b || unordered;
    case Compare::kGeu: return a >= b || unordered;
    case Compare::kNum: return !unordered;
    case Compare::kNan: return unordered;
  }
}

using Comparison = Lanes (*)(Row const& a, Row const& b, Lanes lanes);

// How comparisons see the bits of a register.
template <class T>
struct Integer {
  static T load(uint64_t bits) { return T(bits); }
};
template <class Format>
struct HighHalf {
  static auto load(uint64_t bits) { return Format::load(bits >> 16); }
};

template <class Format, Compare kCompare>
Lanes compare(Row const& a, Row const& b, Lanes lanes) {
  Lanes result = 0;
  for_each_lane(lanes, [&](int lane) {
    bool const holds_here = holds<kCompare>(Format::load(a[lane]), Format::load(b[lane]));
    result |= Lanes(holds_here) << lane;
  });
  return result;
}

template <class Format, size_t... kCompare>
Comparison among(Compare wanted, std::index_sequence<kCompare...>) {
  constexpr Comparison kAll[] = {&compare<Format, Compare(kCompare)>...};
  return kAll[size_t(wanted)];
}

template <class Format>
Comparison comparison(Compare wanted) {
  return among<Format>(wanted, std::make_index_sequence<kNumCompares>());
}

template <class T>
Comparison integer_comparison(Compare wanted) {
  bool const is_unsigned_name = wanted >= Compare::kLo && wanted <= Compare::kHs;
  bool const is_float_name = wanted >= Compare::kEqu;
  if (is_float_name || (is_unsigned_name && std::is_signed_v<T>)) {
    return nullptr;
  }
  return comparison<Integer<T>>(wanted);
}

template <class Format>
Comparison float_comparison(Compare wanted, bool flush) {
  if (wanted >= Compare::kLo && wanted <= Compare::kHs) {
    return nullptr;
  }
  return flush ? comparison<Flushed<Format>>(wanted) : comparison<Format>(wanted);
}

bool is_packed(Type type) { return type == Type::kF16x2 || type == Type::kBF16x2; }

// Of the sources' type; of packed pairs, the low halves. nullptr if there is none.
Comparison comparison_of(Type type, Compare wanted, bool flush) {
  switch (type) {
    case Type::kB16:
    case Type::kU16: return integer_comparison<uint16_t>(wanted);
    case Type::kS16: return integer_comparison<int16_t>(wanted);
    case Type::kB32:
    case Type::kU32: return integer_comparison<uint32_t>(wanted);
    case Type::kS32: return integer_comparison<int32_t>(wanted);
    case Type::kB64:
    case Type::kU64: return integer_comparison<uint64_t>(wanted);
    case Type::kS64: return integer_comparison<int64_t>(wanted);
    case Type::kF16:
    case Type::kF16x2: return float_comparison<F16>(wanted, flush);
    case Type::kBF16:
    case Type::kBF16x2: return float_comparison<BF16>(wanted, false);
    case Type::kF32: return float_comparison<F32>(wanted, flush);
    case Type::kF64: return float_comparison<F64>(wanted, false);
    default: return nullptr;
  }
}

Comparison high_comparison_of(Type type, Compare wanted, bool flush) {
  if (type == Type::kBF16x2) {
    return comparison<HighHalf<BF16>>(wanted);
  }
  return flush ? comparison<HighHalf<Flushed<F16>>>(wanted) : comparison<HighHalf<F16>>(wanted);
}

// ---- What setp and set share ------------------------------------------------------------------------

enum class Combine { kNone, kAnd, kOr, kXor };

struct CompareDetail : Detail {
  Comparison low = nullptr;
  Comparison high = nullptr;  // of the upper halves, for packed pairs
  Combine combine = Combine::kNone;
  // What `set` writes where the comparisons hold.
  uint64_t low_true = 0;
  uint64_t high_true = 0;
};

// The lanes where predicate operand 3 holds.
Lanes third_source(Execution& x, Instruction const& in, Lanes lanes) {
  Lanes result = 0;
  for_each_lane(lanes,
                [&](int lane) { result |= Lanes(x.predicate(in.operands[3], lane)) << lane; });
  return result;
}

Lanes combined(Execution& x, Instruction const& in, Lanes lanes, Lanes holds_for) {
  switch (in.as<CompareDetail>().combine) {
    case Combine::kNone: return holds_for;
    case Combine::kAnd: return holds_for & third_source(x, in, lanes);
    case Combine::kOr: return holds_for | third_source(x, in, lanes);
    case Combine::kXor: return holds_for ^ third_source(x, in, lanes);
  }
  return 0;
}

void write_predicate(Row& row, Lanes lanes, Lanes value) {
  for_each_lane(lanes, [&](int lane) { row[lane] = value >> lane & 1; });
}

// {.ftz} and the sources' type, which is the last.
std::unique_ptr<CompareDetail> take_comparison(Modifiers& modifiers, Type type) {
  auto detail = std::make_unique<CompareDetail>();
  auto const wanted =
      Compare(modifiers.take_one({"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ",
                                  "neu", "ltu", "leu", "gtu", "geu", "num", "nan"}));
  bool const has_ftz = type == Type::kF32 || type == Type::kF16 || type == Type::kF16x2;
  bool const flush = has_ftz && modifiers.take("ftz");
  detail->combine = Combine(modifiers.take_any({"and", "or", "xor"}) + 1);
  detail->low = comparison_of(type, wanted, flush);
  if (detail->low == nullptr) {
    modifiers.unsupported("no such comparison for this type");
  }
  if (is_packed(type)) {
    detail->high = high_comparison_of(type, wanted, flush);
  }
  return detail;
}

void expect_sources(Instruction const& in, Modifiers const& modifiers, Combine combine) {
  size_t const expected = combine == Combine::kNone ? 3 : 4;
  if (in.operands.size() != expected) {
    modifiers.unsupported("wrong number of operands");
  }
}

// ---- setp -------------------------------------------------------------------------------------------

Flow run_setp(Execution& x, Instruction const& in, Lanes lanes) {
  Lanes const holds_for =
      in.as<CompareDetail>().low(x.in(in.operands[1]), x.in(in.operands[2]), lanes);
  write_predicate(x.out(in.operands[0]), lanes, combined(x, in, lanes, holds_for));
  return Flow::kNext;
}

// p|q: q is what p would be if the comparison had the opposite result; of packed pairs, p is about
// the lower halves and q about the upper ones.
Flow run_setp_pair(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& detail = in.as<CompareDetail>();
  Row const& a = x.in(in.operands[1]);
  Row const& b = x.in(in.operands[2]);
  Lanes const first = detail.low(a, b, lanes);
  Lanes const second = detail.high != nullptr ? detail.high(a, b, lanes) : ~first;
  Lanes const p = combined(x, in, lanes, first);
  Lanes const q = combined(x, in, lanes, second);
  write_predicate(x.out(in.operands[0].elements[0]), lanes, p);
  write_predicate(x.out(in.operands[0].elements[1]), lanes, q);
  return Flow::kNext;
}

void bind_setp(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  auto detail = take_comparison(modifiers, type);
  modifiers.finish();
  expect_sources(in, modifiers, detail->combine);
  bool const pair = in.operands[0].is(Operand::Kind::kVector);
  if (is_packed(type) && !pair) {
    modifiers.unsupported("expected p|q for a packed type");
  }
  in.detail = std::move(detail);
  in.run = pair ? &run_setp_pair : &run_setp;
}

// ---- set --------------------------------------------------------------------------------------------

Flow run_set(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& detail = in.as<CompareDetail>();
  Row const& a = x.in(in.operands[1]);
  Row const& b = x.in(in.operands[2]);
  Lanes const low = combined(x, in, lanes, detail.low(a, b, lanes));
  Lanes high = 0;
  if (detail.high != nullptr) {
    high = combined(x, in, lanes, detail.high(a, b, lanes));
  }
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) {
    uint64_t const low_value = (low >> lane & 1) != 0 ? detail.low_true : 0;
    uint64_t const high_value = (high >> lane & 1) != 0 ? detail.high_true : 0;
    result[lane] = low_value | high_value;
  });
  return Flow::kNext;
}

// 1.0 or all ones; 0 if `set` has no such result.
uint64_t true_value(Type type) {
  switch (type) {
    case Type::kU32:
    case Type::kS32: return 0xffff'ffff;
    case Type::kU16:
    case Type::kS16: return 0xffff;
    case Type::kF32: return bits_of_float(1.0f);
    case Type::kF16: return f16_of_float(1.0f);
    case Type::kBF16: return bf16_of_float(1.0f);
    default: return 0;
  }
}

// The same for each half of a packed comparison.
uint64_t true_half(Type type) {
  switch (type) {
    case Type::kU32:
    case Type::kS32: return 0xffff;
    case Type::kF16x2: return f16_of_float(1.0f);
    case Type::kBF16x2: return bf16_of_float(1.0f);
    default: return 0;
  }
}

void bind_set(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  Type const result_type = modifiers.take_type();
  auto detail = take_comparison(modifiers, type);
  modifiers.finish();
  expect_sources(in, modifiers, detail->combine);
  detail->low_true = is_packed(type) ? true_half(result_type) : true_value(result_type);
  detail->high_true = detail->low_true << 16;
  if (detail->low_true == 0) {
    modifiers.unsupported("no such result type");
  }
  in.detail = std::move(detail);
  in.run = &run_set;
}

}  // namespace

void add_compare(BinderTable& table) {
  table["setp"] = bind_setp;
  table["set"] = bind_set;
}

}  // namespace hostsim
