// cvt of single values: between integers, between floats, and from one to the other. Common forms have
// handlers of their own; a general one serves all other conversions between floats.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "convert.h"
#include "elementwise.h"
#include "float_format.h"

namespace hostsim {

namespace {

// Calls function.operator()<T>() for the integer type T of `type`.
template <class Function>
Handler with_integer(Type type, Function function) {
  switch (type) {
    case Type::kU8: return function.template operator()<uint8_t>();
    case Type::kU16: return function.template operator()<uint16_t>();
    case Type::kU32: return function.template operator()<uint32_t>();
    case Type::kU64: return function.template operator()<uint64_t>();
    case Type::kS8: return function.template operator()<int8_t>();
    case Type::kS16: return function.template operator()<int16_t>();
    case Type::kS32: return function.template operator()<int32_t>();
    case Type::kS64: return function.template operator()<int64_t>();
    default: return nullptr;
  }
}

template <class Function>
Handler with_float(Type type, Function function) {
  switch (type) {
    case Type::kF16: return function.template operator()<F16>();
    case Type::kBF16: return function.template operator()<BF16>();
    case Type::kF32: return function.template operator()<F32>();
    case Type::kF64: return function.template operator()<F64>();
    default: return nullptr;
  }
}

// A result narrower than its register is extended by its sign or by zeros.
template <class T>
uint64_t extended(T value) {
  return uint64_t(value);
}

// ---- Integer to integer -----------------------------------------------------------------------------

template <class To, class From>
struct Truncate {
  static uint64_t apply(uint64_t bits) { return extended(To(From(bits))); }
};

template <class To, class From>
struct Clamp {
  static uint64_t apply(uint64_t bits) {
    From const value = From(bits);
    if (std::cmp_less(value, std::numeric_limits<To>::min())) {
      return extended(std::numeric_limits<To>::min());
    }
    if (std::cmp_greater(value, std::numeric_limits<To>::max())) {
      return extended(std::numeric_limits<To>::max());
    }
    return extended(To(value));
  }
};

Handler integer_to_integer(Conversion const& conversion) {
  return with_integer(conversion.to, [&]<class To>() {
    return with_integer(conversion.from, [&]<class From>() -> Handler {
      return conversion.saturate ? &run_elementwise<Clamp<To, From>, 1>
                                 : &run_elementwise<Truncate<To, From>, 1>;
    });
  });
}

// ---- Float to integer -------------------------------------------------------------------------------

double round_to_integral(double value, Integral integral) {
  switch (integral) {
    case Integral::kNo: return value;
    case Integral::kNearestEven: return std::nearbyint(value);
    case Integral::kZero: return std::trunc(value);
    case Integral::kDown: return std::floor(value);
    case Integral::kUp: return std::ceil(value);
  }
  return value;
}

// Clamped. NaN gives 0; but where the source or the result has 64 bits, the result's highest bit.
template <class To>
uint64_t clamp_to_integer(double value, bool from_double) {
  using Limits = std::numeric_limits<To>;
  if (value != value) {
    bool const is_wide = from_double || sizeof(To) == 8;
    return is_wide ? extended(To(uint64_t(1) << (8 * sizeof(To) - 1))) : 0;
  }
  if (value >= std::ldexp(1.0, Limits::digits)) {
    return extended(Limits::max());
  }
  if (value <= double(Limits::min())) {
    return extended(Limits::min());
  }
  return extended(To(value));
}

template <class Format, class To>
Flow run_float_to_integer(Execution& x, Instruction const& in, Lanes lanes) {
  Row const& source = x.in(in.operands[1]);
  Row& result = x.out(in.operands[0]);
  Integral const integral = in.as<Conversion>().integral;
  for_each_lane(lanes, [&](int lane) {
    double const value = round_to_integral(Format::load(source[lane]), integral);
    result[lane] = clamp_to_integer<To>(value, std::is_same_v<Format, F64>);
  });
  return Flow::kNext;
}

Handler float_to_integer(Conversion const& conversion) {
  return with_integer(conversion.to, [&]<class To>() {
    if (conversion.flush) {
      return Handler(&run_float_to_integer<Flushed<F32>, To>);
    }
    return with_float(conversion.from,
                      []<class Format>() -> Handler { return &run_float_to_integer<Format, To>; });
  });
}

// ---- Integer to float -------------------------------------------------------------------------------

template <class Format, class From>
struct NearestFloat {
  static uint64_t apply(uint64_t bits) {
    if constexpr (std::is_same_v<Format, F32> || std::is_same_v<Format, F64>) {
      return Format::store(typename Format::Value(From(bits)));
    } else {
      return Format::store(double(From(bits)));
    }
  }
};

template <class From>
Flow run_integer_to_float(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& conversion = in.as<Conversion>();
  Row const& source = x.in(in.operands[1]);
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) {
    From const value = From(source[lane]);
    bool const negative = value < 0;
    uint64_t magnitude = negative ? 0 - uint64_t(value) : uint64_t(value);
    if (conversion.saturate) {
      magnitude = !negative && magnitude != 0;
    }
    result[lane] = encode_integer(conversion.to, negative, magnitude, conversion.rounding);
  });
  return Flow::kNext;
}

Handler integer_to_float(Conversion const& conversion) {
  return with_integer(conversion.from, [&]<class From>() -> Handler {
    bool const is_half = bits_of(conversion.to) == 16;
    bool const rounds_twice = is_half && sizeof(From) == 8;  // not all of them fit in a double
    if (!conversion.is_plain() || rounds_twice) {
      return &run_integer_to_float<From>;
    }
    return with_float(conversion.to, []<class Format>() -> Handler {
      return &run_elementwise<NearestFloat<Format, From>, 1>;
    });
  });
}

// ---- Float to float ---------------------------------------------------------------------------------

template <class To, class From>
struct Cast {
  static uint64_t apply(uint64_t bits) {
    if constexpr (std::is_same_v<To, F16> || std::is_same_v<To, BF16>) {
      return To::store(From::load(bits));
    } else {
      return To::store(typename To::Value(From::load(bits)));
    }
  }
};

Flow run_float_to_float(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& conversion = in.as<Conversion>();
  Row const& source = x.in(in.operands[1]);
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) { result[lane] = convert_float(conversion, source[lane]); });
  return Flow::kNext;
}

Handler float_to_float(Conversion const& conversion) {
  if (!conversion.is_plain() || conversion.to == Type::kTF32) {
    return &run_float_to_float;
  }
  return with_float(conversion.to, [&]<class To>() {
    return with_float(conversion.from,
                      []<class From>() -> Handler { return &run_elementwise<Cast<To, From>, 1>; });
  });
}

// ---- Binding ----------------------------------------------------------------------------------------

bool is_packed(Type type) {
  return type == Type::kF16x2 || type == Type::kBF16x2 || type == Type::kE4M3x2 ||
         type == Type::kE5M2x2;
}

void take_rounding(Modifiers& modifiers, Conversion& conversion) {
  constexpr Rounding kRoundings[] = {Rounding::kNearestEven, Rounding::kZero, Rounding::kDown,
                                     Rounding::kUp};
  int const rounding = modifiers.take_any({"rn", "rz", "rm", "rp"});
  conversion.rounding = kRoundings[std::max(rounding, 0)];
  conversion.has_rounding = rounding >= 0;
  if (conversion.to == Type::kTF32 && modifiers.take("rna")) {
    conversion.rounding = Rounding::kNearestAway;
    conversion.has_rounding = true;
  }
  conversion.integral = Integral(modifiers.take_any({"rni", "rzi", "rmi", "rpi"}) + 1);
}

std::unique_ptr<Conversion> take_conversion(Modifiers& modifiers) {
  auto conversion = std::make_unique<Conversion>();
  conversion->from = modifiers.take_type();
  conversion->to = modifiers.take_type();
  take_rounding(modifiers, *conversion);
  bool const has_ftz = conversion->from == Type::kF32 || conversion->to == Type::kF32;
  conversion->flush = has_ftz && modifiers.take("ftz");
  conversion->saturate = modifiers.take("sat");
  conversion->rectify = is_float(conversion->from) && modifiers.take("relu");
  conversion->to_largest = is_float(conversion->from) && modifiers.take("satfinite");
  return conversion;
}

// PTX wants the rounding to be written out wherever there may be one.
void check_rounding(Modifiers const& modifiers, Conversion const& conversion) {
  bool const to_float = is_float(conversion.to);
  bool const from_float = is_float(conversion.from);
  bool const narrows =
      conversion.to != conversion.from &&  // also between f16 and bf16, f32 and tf32
      bits_of(conversion.to) <= bits_of(conversion.from);
  bool const rounds_to_float = to_float && (!from_float || narrows);
  bool const rounds_to_integer = from_float && !to_float;
  if (rounds_to_float && !conversion.has_rounding) {
    modifiers.unsupported("expected a rounding mode, one of .rn, .rz, .rm, .rp");
  }
  if (rounds_to_integer != (conversion.integral != Integral::kNo) &&
      conversion.from != conversion.to) {
    modifiers.unsupported("expected .rni, .rzi, .rmi or .rpi for float to integer, and only there");
  }
}

Handler handler_of(Conversion const& conversion) {
  if (is_float(conversion.to)) {
    return is_float(conversion.from) ? float_to_float(conversion) : integer_to_float(conversion);
  }
  return is_float(conversion.from) ? float_to_integer(conversion) : integer_to_integer(conversion);
}

void bind_convert(Instruction& in) {
  Modifiers modifiers(in);
  auto conversion = take_conversion(modifiers);
  if (is_packed(conversion->from) || is_packed(conversion->to)) {
    bind_packed_conversion(in, modifiers, std::move(conversion));
    return;
  }
  modifiers.finish();
  check_rounding(modifiers, *conversion);
  bind_elementwise(in, {handler_of(*conversion), 1});
  in.detail = std::move(conversion);
}

}  // namespace

uint64_t convert_float(Conversion const& conversion, uint64_t bits) {
  if (conversion.flush && conversion.from == Type::kF32) {
    bits = Flushed<F32>::flush(bits);
  }
  double value = round_to_integral(decode(conversion.from, bits), conversion.integral);
  if (conversion.saturate) {
    value = Saturated()(value);
  }
  if (conversion.rectify) {
    value = Rectified()(value);
  }
  uint64_t const result = encode(conversion.to, value, conversion.rounding, conversion.to_largest);
  return conversion.flush && conversion.to == Type::kF32 ? Flushed<F32>::flush(result) : result;
}

void add_convert(BinderTable& table) {
  table["cvt"] = bind_convert;
  table["cvt.pack"] = bind_pack_saturated;
}

}  // namespace hostsim
