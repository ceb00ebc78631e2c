// cvt of packed pairs: two f32 to f16x2, bf16x2, e4m3x2 or e5m2x2; between f16x2 and the 8-bit pairs;
// and cvt.pack of two integers.
#include <algorithm>
#include <array>

#include "convert.h"
#include "elementwise.h"
#include "float_format.h"

namespace hostsim {

namespace {

Type element_of(Type packed) {
  switch (packed) {
    case Type::kF16x2: return Type::kF16;
    case Type::kBF16x2: return Type::kBF16;
    case Type::kE4M3x2: return Type::kE4M3;
    case Type::kE5M2x2: return Type::kE5M2;
    default: return packed;
  }
}

bool is_fp8(Type element) { return element == Type::kE4M3 || element == Type::kE5M2; }

// ---- Two f32 to a pair: the first source goes to the upper half --------------------------------------

using Encode = uint64_t (*)(float);

template <Encode kEncode, int kBits>
struct PackFloats {
  static uint64_t apply(uint64_t high, uint64_t low) {
    return kEncode(as_float(high)) << kBits | kEncode(as_float(low));
  }
};

Flow run_pack_floats(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& conversion = in.as<Conversion>();
  int const bits = bits_of(conversion.to);
  Row const& high = x.in(in.operands[1]);
  Row const& low = x.in(in.operands[2]);
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) {
    result[lane] =
        convert_float(conversion, high[lane]) << bits | convert_float(conversion, low[lane]);
  });
  return Flow::kNext;
}

Elementwise pack_floats(Conversion const& conversion) {
  bool const is_nearest = conversion.rounding == Rounding::kNearestEven && !conversion.rectify;
  if (is_nearest && conversion.to_largest == is_fp8(conversion.to)) {
    switch (conversion.to) {
      case Type::kF16: return elementwise<2, PackFloats<f16_of_float, 16>>();
      case Type::kBF16: return elementwise<2, PackFloats<bf16_of_float, 16>>();
      case Type::kE4M3: return elementwise<2, PackFloats<e4m3_of_float, 8>>();
      case Type::kE5M2: return elementwise<2, PackFloats<e5m2_of_float, 8>>();
      default: return {};
    }
  }
  return {&run_pack_floats, 2};
}

// ---- f16x2 to a pair of 8 bits, and back ------------------------------------------------------------

template <Encode kEncode, class Finish>
struct NarrowPair {
  static uint64_t apply(uint64_t pair) {
    uint64_t const low = kEncode(Finish()(float_of_f16(pair)));
    uint64_t const high = kEncode(Finish()(float_of_f16(pair >> 16)));
    return high << 8 | low;
  }
};

Elementwise narrow_pair(Conversion const& conversion) {
  if (conversion.to == Type::kE4M3) {
    return conversion.rectify ? elementwise<1, NarrowPair<e4m3_of_float, Rectified>>()
                              : elementwise<1, NarrowPair<e4m3_of_float, Unchanged>>();
  }
  return conversion.rectify ? elementwise<1, NarrowPair<e5m2_of_float, Rectified>>()
                            : elementwise<1, NarrowPair<e5m2_of_float, Unchanged>>();
}

// The f16 for each code of an 8-bit format.
template <Type kType, bool kRectify>
std::array<uint16_t, 256> const& halves_of() {
  static std::array<uint16_t, 256> const halves = [] {
    std::array<uint16_t, 256> table{};
    for (uint64_t code = 0; code < table.size(); ++code) {
      float const value = float(decode(kType, code));
      table[code] = uint16_t(f16_of_float(kRectify ? Rectified()(value) : value));
    }
    return table;
  }();
  return halves;
}

template <Type kType, bool kRectify>
Flow run_widen_pair(Execution& x, Instruction const& in, Lanes lanes) {
  std::array<uint16_t, 256> const& halves = halves_of<kType, kRectify>();
  Row const& source = x.in(in.operands[1]);
  Row& result = x.out(in.operands[0]);
  for_each_lane(lanes, [&](int lane) {
    uint64_t const pair = source[lane];
    result[lane] = uint64_t(halves[pair >> 8 & 0xff]) << 16 | halves[pair & 0xff];
  });
  return Flow::kNext;
}

Elementwise widen_pair(Conversion const& conversion) {
  if (conversion.from == Type::kE4M3) {
    return {conversion.rectify ? &run_widen_pair<Type::kE4M3, true>
                               : &run_widen_pair<Type::kE4M3, false>,
            1};
  }
  return {
      conversion.rectify ? &run_widen_pair<Type::kE5M2, true> : &run_widen_pair<Type::kE5M2, false>,
      1};
}

Elementwise handler_of(Conversion const& conversion) {
  bool const is_nearest = conversion.rounding == Rounding::kNearestEven;
  if (conversion.from == Type::kF32) {
    bool const is_truncated_half = conversion.rounding == Rounding::kZero && !is_fp8(conversion.to);
    return is_nearest || is_truncated_half ? pack_floats(conversion) : Elementwise();
  }
  if (conversion.from == Type::kF16 && is_fp8(conversion.to)) {
    return is_nearest && conversion.to_largest ? narrow_pair(conversion) : Elementwise();
  }
  if (is_fp8(conversion.from) && conversion.to == Type::kF16) {
    return is_nearest && !conversion.to_largest ? widen_pair(conversion) : Elementwise();
  }
  return {};
}

// ---- cvt.pack.sat.<type>.s32{.b32} d, a, b{, c} -----------------------------------------------------

// {c, a, b}: a and b clamped to the type, above them the low bits of c.
template <class T>
struct PackSaturated {
  static uint64_t apply(uint64_t a, uint64_t b, uint64_t c) {
    constexpr int kBits = 8 * sizeof(T);
    return uint32_t(c << 2 * kBits | clamped(a) << kBits | clamped(b));
  }
  static uint64_t apply(uint64_t a, uint64_t b) { return apply(a, b, 0); }

 private:
  static uint64_t clamped(uint64_t bits) {
    using Limits = std::numeric_limits<T>;
    return bits_of_integer(
        T(std::clamp(int32_t(bits), int32_t(Limits::min()), int32_t(Limits::max()))));
  }
};

}  // namespace

void bind_packed_conversion(Instruction& in, Modifiers& modifiers,
                            std::unique_ptr<Conversion> conversion) {
  conversion->rectify = conversion->rectify || modifiers.take("relu");
  conversion->to_largest = conversion->to_largest || modifiers.take("satfinite");
  modifiers.finish();
  if (!conversion->has_rounding || conversion->flush || conversion->saturate ||
      conversion->integral != Integral::kNo) {
    modifiers.unsupported("unknown form of a packed conversion");
  }
  if ((conversion->from == Type::kF32) == (in.operands.size() != 3)) {
    modifiers.unsupported("wrong number of sources");
  }
  conversion->from = element_of(conversion->from);
  conversion->to = element_of(conversion->to);
  if (is_fp8(conversion->to) && !conversion->to_largest) {
    modifiers.unsupported("expected .satfinite");
  }
  bind_elementwise(in, handler_of(*conversion));
  in.detail = std::move(conversion);
}

void bind_pack_saturated(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_one({"pack"});
  modifiers.take_one({"sat"});
  modifiers.take_one({"s32"});
  int const type = modifiers.take_one({"u16", "s16", "u8", "s8"});
  bool const has_third = modifiers.take("b32");
  modifiers.finish();
  if (!has_third) {
    if (type > 1) {
      modifiers.unsupported("types of 8 bits need a third source");
    }
    bind_elementwise(in, type == 0 ? elementwise<2, PackSaturated<uint16_t>>()
                                   : elementwise<2, PackSaturated<int16_t>>());
    return;
  }
  if (type < 2) {
    modifiers.unsupported("types of 16 bits leave no room for a third source");
  }
  bind_elementwise(in, type == 2 ? elementwise<3, PackSaturated<uint8_t>>()
                                 : elementwise<3, PackSaturated<int8_t>>());
}

}  // namespace hostsim
