// Integer arithmetic: add, sub, mul, mad, div, rem, min, max and their kin, of 16, 32 and 64 bits and
// of packed pairs of 16 bits. Carries are in ops_carry.cpp.
#include <algorithm>
#include <limits>

#include "arithmetic.h"
#include "elementwise.h"

namespace hostsim {

namespace {

// ---- The functions. Sums and products are those of unsigned integers modulo 2^64, since signed
// ---- overflow wraps in PTX.

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    return T(uint64_t(a) + uint64_t(b));
  }
};

struct Sub {
  template <class T>
  T operator()(T a, T b) const {
    return T(uint64_t(a) - uint64_t(b));
  }
};

int32_t clamp_to_s32(int64_t value) {
  return int32_t(std::clamp<int64_t>(value, std::numeric_limits<int32_t>::min(),
                                     std::numeric_limits<int32_t>::max()));
}

struct AddSaturated {
  int32_t operator()(int32_t a, int32_t b) const { return clamp_to_s32(int64_t(a) + b); }
};

struct SubSaturated {
  int32_t operator()(int32_t a, int32_t b) const { return clamp_to_s32(int64_t(a) - b); }
};

template <class T>
struct TwiceAsWide;
template <>
struct TwiceAsWide<int16_t> : std::type_identity<int32_t> {};
template <>
struct TwiceAsWide<uint16_t> : std::type_identity<uint32_t> {};
template <>
struct TwiceAsWide<int32_t> : std::type_identity<int64_t> {};
template <>
struct TwiceAsWide<uint32_t> : std::type_identity<uint64_t> {};
template <>
struct TwiceAsWide<int64_t> : std::type_identity<__int128> {};
template <>
struct TwiceAsWide<uint64_t> : std::type_identity<unsigned __int128> {};

template <class T>
using Wide = typename TwiceAsWide<T>::type;

struct MulLow {
  template <class T>
  T operator()(T a, T b) const {
    return T(uint64_t(a) * uint64_t(b));
  }
};

struct MulHigh {
  template <class T>
  T operator()(T a, T b) const {
    return T((Wide<T>(a) * Wide<T>(b)) >> (8 * sizeof(T)));
  }
};

// The 48-bit product of 24-bit integers: bits 0..31 or 16..47.
template <int kShift>
struct Mul24 {
  template <class T>
  T operator()(T a, T b) const {
    int64_t const product = int64_t(low24(a)) * int64_t(low24(b));
    return T(product >> kShift);
  }

 private:
  template <class T>
  static T low24(T value) {
    return T(T(uint32_t(value) << 8) >> 8);
  }
};

// Multiply, then add the third source, whose type is that of the product.
template <class Multiply>
struct MultiplyAdd {
  template <class T>
  T operator()(T a, T b, T c) const {
    return Add()(Multiply()(a, b), c);
  }
};

template <class Multiply>
struct MultiplyAddSaturated {
  int32_t operator()(int32_t a, int32_t b, int32_t c) const {
    return clamp_to_s32(int64_t(Multiply()(a, b)) + c);
  }
};

// Products as wide as both factors, and with an addend of that width.
template <class T>
struct MulWide {
  static uint64_t apply(uint64_t a, uint64_t b) { return bits_of_integer(Wide<T>(T(a)) * T(b)); }
};

template <class T>
struct MadWide {
  static uint64_t apply(uint64_t a, uint64_t b, uint64_t c) {
    return bits_of_integer(Add()(Wide<T>(Wide<T>(T(a)) * T(b)), Wide<T>(c)));
  }
};

// What a GPU makes of x / 0 is unspecified.
template <class T>
T divided_by_zero(T dividend) {
  report("arith", "division by zero: the dividend is %lld", static_cast<long long>(dividend));
  return T(-1);
}

struct Div {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) {
      return divided_by_zero(a);
    }
    if (std::is_signed_v<T> && b == T(-1)) {
      return Sub()(T(0), a);  // the host traps at the smallest / -1
    }
    return T(a / b);
  }
};

struct Rem {
  template <class T>
  T operator()(T a, T b) const {
    if (b == 0) {
      return divided_by_zero(a);
    }
    if (std::is_signed_v<T> && b == T(-1)) {
      return 0;
    }
    return T(a % b);
  }
};

struct Neg {
  template <class T>
  T operator()(T a) const {
    return Sub()(T(0), a);
  }
};

struct Abs {
  template <class T>
  T operator()(T a) const {
    return a < 0 ? Neg()(a) : a;
  }
};

struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return std::min(a, b);
  }
};

struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return std::max(a, b);
  }
};

template <class Function>
struct Relu {
  template <class T>
  T operator()(T a, T b) const {
    return std::max(Function()(a, b), T(0));
  }
};

struct Sad {
  template <class T>
  T operator()(T a, T b, T c) const {
    return Add()(a < b ? Sub()(b, a) : Sub()(a, b), c);
  }
};

// Dot products of the 4 bytes of a register with 4 bytes, or with 2 halves.
template <class A, class B>
struct Dot4 {
  static uint64_t apply(uint64_t a, uint64_t b, uint64_t c) {
    uint64_t sum = c;
    for (int i = 0; i < 4; ++i) {
      sum += uint64_t(int64_t(A(a >> 8 * i)) * int64_t(B(b >> 8 * i)));
    }
    return uint32_t(sum);
  }
};

template <class A, class B, int kFirstByte>
struct Dot2 {
  static uint64_t apply(uint64_t a, uint64_t b, uint64_t c) {
    uint64_t sum = c;
    for (int i = 0; i < 2; ++i) {
      sum += uint64_t(int64_t(A(a >> 16 * i)) * int64_t(B(b >> 8 * (kFirstByte + i))));
    }
    return uint32_t(sum);
  }
};

template <class A, class B>
using Dot2Low = Dot2<A, B, 0>;
template <class A, class B>
using Dot2High = Dot2<A, B, 2>;

// ---- The binders ------------------------------------------------------------------------------------

bool is_packed(Type type) { return type == Type::kU16x2 || type == Type::kS16x2; }

template <int kSources, class Function>
Elementwise for_any_integer(Type type) {
  return is_packed(type) ? for_packed_integer<kSources, Function>(type)
                         : for_integer<kSources, Function>(type);
}

template <class Function, class Saturated>
void bind_sum(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  bool const saturate = modifiers.take("sat");
  modifiers.finish();
  if (saturate && type != Type::kS32) {
    modifiers.unsupported(".sat is for .s32 only");
  }
  bind_elementwise(in, saturate ? elementwise<2, IntegerOp<int32_t, Saturated>>()
                                : for_any_integer<2, Function>(type));
}

template <int kSources, class Function>
void bind_plain(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  modifiers.finish();
  bind_elementwise(in, for_integer<kSources, Function>(type));
}

template <class Function>
void bind_signed(Instruction& in) {
  if (!is_signed(Modifiers(in).take_type())) {
    throw Unsupported(in.text + ": expected a signed type");
  }
  bind_plain<1, Function>(in);
}

template <class Function>
void bind_extremum(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  bool const relu = modifiers.take("relu");
  modifiers.finish();
  if (relu && type != Type::kS32 && type != Type::kS16x2) {
    modifiers.unsupported(".relu is for .s32 and .s16x2 only");
  }
  bind_elementwise(
      in, relu ? for_any_integer<2, Relu<Function>>(type) : for_any_integer<2, Function>(type));
}

template <int kSources, template <class> class Op>
Elementwise for_wide_product(Type type) {
  switch (type) {
    case Type::kU16: return elementwise<kSources, Op<uint16_t>>();
    case Type::kS16: return elementwise<kSources, Op<int16_t>>();
    case Type::kU32: return elementwise<kSources, Op<uint32_t>>();
    case Type::kS32: return elementwise<kSources, Op<int32_t>>();
    default: return {};
  }
}

void bind_mul(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  int const part = modifiers.take_one({"lo", "hi", "wide"});
  modifiers.finish();
  Elementwise const handlers[] = {for_integer<2, MulLow>(type), for_integer<2, MulHigh>(type),
                                  for_wide_product<2, MulWide>(type)};
  bind_elementwise(in, handlers[part]);
}

void bind_mad(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  int const part = modifiers.take_one({"lo", "hi", "wide"});
  bool const saturate = modifiers.take("sat");
  modifiers.finish();
  if (saturate) {
    if (part != 1 || type != Type::kS32) {
      modifiers.unsupported(".sat is for mad.hi.s32 only");
    }
    bind_elementwise(in, elementwise<3, IntegerOp<int32_t, MultiplyAddSaturated<MulHigh>>>());
    return;
  }
  Elementwise const handlers[] = {for_integer<3, MultiplyAdd<MulLow>>(type),
                                  for_integer<3, MultiplyAdd<MulHigh>>(type),
                                  for_wide_product<3, MadWide>(type)};
  bind_elementwise(in, handlers[part]);
}

template <int kSources, class Function>
Elementwise for_32_bits(Type type) {
  return bits_of(type) == 32 ? for_integer<kSources, Function>(type) : Elementwise();
}

void bind_mul24(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  bool const high = modifiers.take_one({"lo", "hi"}) == 1;
  modifiers.finish();
  bind_elementwise(in, high ? for_32_bits<2, Mul24<16>>(type) : for_32_bits<2, Mul24<0>>(type));
}

void bind_mad24(Instruction& in) {
  Modifiers modifiers(in);
  Type const type = modifiers.take_type();
  bool const high = modifiers.take_one({"lo", "hi"}) == 1;
  bool const saturate = modifiers.take("sat");
  modifiers.finish();
  if (saturate) {
    if (!high || type != Type::kS32) {
      modifiers.unsupported(".sat is for mad24.hi.s32 only");
    }
    bind_elementwise(in, elementwise<3, IntegerOp<int32_t, MultiplyAddSaturated<Mul24<16>>>>());
    return;
  }
  bind_elementwise(in, high ? for_32_bits<3, MultiplyAdd<Mul24<16>>>(type)
                            : for_32_bits<3, MultiplyAdd<Mul24<0>>>(type));
}

// The handler for the signs of both factors, which are packed in 32 bits.
template <template <class, class> class Dot, class UnsignedA, class SignedA>
Elementwise for_signs(bool signed_a, bool signed_b) {
  if (signed_a) {
    return signed_b ? elementwise<3, Dot<SignedA, int8_t>>()
                    : elementwise<3, Dot<SignedA, uint8_t>>();
  }
  return signed_b ? elementwise<3, Dot<UnsignedA, int8_t>>()
                  : elementwise<3, Dot<UnsignedA, uint8_t>>();
}

bool take_signed_32(Modifiers& modifiers) {
  Type const type = modifiers.take_type();
  if (type != Type::kU32 && type != Type::kS32) {
    modifiers.unsupported("expected .u32 or .s32");
  }
  return type == Type::kS32;
}

void bind_dp4a(Instruction& in) {
  Modifiers modifiers(in);
  bool const signed_b = take_signed_32(modifiers);
  bool const signed_a = take_signed_32(modifiers);
  modifiers.finish();
  bind_elementwise(in, for_signs<Dot4, uint8_t, int8_t>(signed_a, signed_b));
}

void bind_dp2a(Instruction& in) {
  Modifiers modifiers(in);
  bool const signed_b = take_signed_32(modifiers);
  bool const signed_a = take_signed_32(modifiers);
  bool const high = modifiers.take_one({"lo", "hi"}) == 1;
  modifiers.finish();
  bind_elementwise(in, high ? for_signs<Dot2High, uint16_t, int16_t>(signed_a, signed_b)
                            : for_signs<Dot2Low, uint16_t, int16_t>(signed_a, signed_b));
}

}  // namespace

BinderTable const& integer_arithmetic() {
  static BinderTable const table = {
      {"add", bind_sum<Add, AddSaturated>},
      {"sub", bind_sum<Sub, SubSaturated>},
      {"mul", bind_mul},
      {"mad", bind_mad},
      {"div", bind_plain<2, Div>},
      {"neg", bind_signed<Neg>},
      {"abs", bind_signed<Abs>},
      {"min", bind_extremum<Min>},
      {"max", bind_extremum<Max>},
  };
  return table;
}

void add_integer(BinderTable& table) {
  table["rem"] = bind_plain<2, Rem>;
  table["sad"] = bind_plain<3, Sad>;
  table["mul24"] = bind_mul24;
  table["mad24"] = bind_mad24;
  table["dp4a"] = bind_dp4a;
  table["dp2a"] = bind_dp2a;
}

}  // namespace hostsim
