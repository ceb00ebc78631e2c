// The number formats of PTX: names of types, and conversions between doubles and every float format.
// All roundings go through one function, pack(), which takes any finite value as an integer times a
// power of two.
#include "number.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace hostsim {

namespace {

struct TypeInfo {
  Type type;
  char const* name;
  int bits;
};

constexpr std::array kTypes = std::to_array<TypeInfo>({
    {Type::kPred, "pred", 1},      {Type::kB8, "b8", 8},        {Type::kB16, "b16", 16},
    {Type::kB32, "b32", 32},       {Type::kB64, "b64", 64},     {Type::kB128, "b128", 128},
    {Type::kU8, "u8", 8},          {Type::kU16, "u16", 16},     {Type::kU32, "u32", 32},
    {Type::kU64, "u64", 64},       {Type::kS8, "s8", 8},        {Type::kS16, "s16", 16},
    {Type::kS32, "s32", 32},       {Type::kS64, "s64", 64},     {Type::kF16, "f16", 16},
    {Type::kBF16, "bf16", 16},     {Type::kTF32, "tf32", 32},   {Type::kF32, "f32", 32},
    {Type::kF64, "f64", 64},       {Type::kF16x2, "f16x2", 32}, {Type::kBF16x2, "bf16x2", 32},
    {Type::kE4M3, "e4m3", 8},      {Type::kE5M2, "e5m2", 8},    {Type::kE4M3x2, "e4m3x2", 16},
    {Type::kE5M2x2, "e5m2x2", 16}, {Type::kU16x2, "u16x2", 32}, {Type::kS16x2, "s16x2", 32},
});

constexpr bool in_order_of_the_enumeration() {
  for (size_t i = 0; i < kTypes.size(); ++i) {
    if (size_t(kTypes[i].type) != i) {
      return false;
    }
  }
  return true;
}
static_assert(in_order_of_the_enumeration());

// A binary floating-point format with an implicit leading bit.
struct Format {
  int exponent_bits;
  int mantissa_bits;
  bool has_infinity;  // e4m3 has none: all but one code of the last exponent are numbers
  int unused_bits;    // below the mantissa: tf32 sits in the high bits of an f32

  constexpr int min_exponent() const { return 2 - (1 << (exponent_bits - 1)); }
  constexpr uint64_t infinity() const {
    return ((uint64_t(1) << exponent_bits) - 1) << mantissa_bits;
  }
  constexpr uint64_t all_ones() const {
    return (uint64_t(1) << (exponent_bits + mantissa_bits)) - 1;
  }
  constexpr uint64_t largest() const { return has_infinity ? infinity() - 1 : all_ones() - 1; }
  constexpr uint64_t sign() const { return uint64_t(1) << (exponent_bits + mantissa_bits); }
};

constexpr Format kFormatF16{5, 10, true, 0};
constexpr Format kFormatBF16{8, 7, true, 0};
constexpr Format kFormatTF32{8, 10, true, 13};
constexpr Format kFormatF32{8, 23, true, 0};
constexpr Format kFormatF64{11, 52, true, 0};
constexpr Format kFormatE4M3{4, 3, false, 0};
constexpr Format kFormatE5M2{5, 2, true, 0};

Format const& format_of(Type type) {
  switch (type) {
    case Type::kF16: return kFormatF16;
    case Type::kBF16: return kFormatBF16;
    case Type::kTF32: return kFormatTF32;
    case Type::kF32: return kFormatF32;
    case Type::kE4M3: return kFormatE4M3;
    case Type::kE5M2: return kFormatE5M2;
    default: return kFormatF64;
  }
}

// (-1)^negative * significand * 2^exponent
struct Unpacked {
  bool negative;
  uint64_t significand;
  int exponent;
};

Unpacked unpack(double value) {
  uint64_t const bits = bits_of_double(value);
  uint64_t const mantissa = bits & ((uint64_t(1) << 52) - 1);
  int const exponent = int(bits >> 52 & 0x7ff);
  if (exponent == 0) {
    return {std::signbit(value), mantissa, -1074};
  }
  return {std::signbit(value), mantissa | uint64_t(1) << 52, exponent - 1075};
}

// Whether what is cut off below the last place makes the magnitude one larger. `rest` is compared
// with `half` of the last place; both are in the same unit.
bool rounds_up(Rounding rounding, bool negative, bool odd, uint64_t rest, uint64_t half) {
  switch (rounding) {
    case Rounding::kNearestEven: return rest > half || (rest == half && odd);
    case Rounding::kNearestAway: return rest >= half;
    case Rounding::kZero: return false;
    case Rounding::kDown: return negative && rest != 0;
    case Rounding::kUp: return !negative && rest != 0;
  }
  return false;
}

// significand / 2^shift, rounded.
uint64_t shift_and_round(uint64_t significand, int shift, Rounding rounding, bool negative) {
  if (shift <= 0) {
    return significand << -shift;
  }
  if (shift > 64) {  // less than half of the last place, whatever it is
    return rounds_up(rounding, negative, false, significand != 0, 2);
  }
  uint64_t const kept = shift == 64 ? 0 : significand >> shift;
  uint64_t const rest = shift == 64 ? significand : significand & ((uint64_t(1) << shift) - 1);
  uint64_t const half = uint64_t(1) << (shift - 1);
  return kept + rounds_up(rounding, negative, kept & 1, rest, half);
}

bool overflows_to_largest(Format const& f, Rounding rounding, bool negative, bool saturate) {
  return saturate || !f.has_infinity || rounding == Rounding::kZero ||
         rounding == (negative ? Rounding::kUp : Rounding::kDown);
}

uint64_t pack(Format const& f, Unpacked const& value, Rounding rounding, bool saturate) {
  uint64_t const sign = value.negative ? f.sign() : 0;
  if (value.significand == 0) {
    return sign << f.unused_bits;
  }
  int const exponent = value.exponent + 63 - std::countl_zero(value.significand);
  int const field = std::max(exponent - f.min_exponent(), 0);  // exponent field of a normal, less 1
  int const last_place = field + f.min_exponent() - f.mantissa_bits;
  uint64_t const rounded =
      shift_and_round(value.significand, last_place - value.exponent, rounding, value.negative);
  // The implicit bit of a normal number, or a carry out of the mantissa, adds 1 to the field.
  uint64_t bits = f.all_ones();
  if (field < 1 << f.exponent_bits) {
    bits = (uint64_t(field) << f.mantissa_bits) + rounded;
  }
  if (bits > f.largest()) {
    bool const to_largest = overflows_to_largest(f, rounding, value.negative, saturate);
    bits = to_largest ? f.largest() : f.infinity();
  }
  return (sign | bits) << f.unused_bits;
}

constexpr double power_of_two(int exponent) {
  return std::bit_cast<double>(uint64_t(exponent + 1023) << 52);
}

constexpr float value_of_fp8(Format const& f, uint32_t code) {
  uint32_t const magnitude = code & 0x7f;
  if (magnitude > f.largest()) {
    bool const infinite = f.has_infinity && magnitude == f.infinity();
    return std::bit_cast<float>(infinite ? (code & 0x80) << 24 | 0x7f80'0000 : uint32_t(kNanF32));
  }
  uint32_t const field = magnitude >> f.mantissa_bits;
  uint32_t const mantissa = magnitude & ((1u << f.mantissa_bits) - 1);
  uint32_t const significand = field == 0 ? mantissa : mantissa | 1u << f.mantissa_bits;
  int const exponent = int(std::max(field, 1u)) - 1 + f.min_exponent() - f.mantissa_bits;
  double const value = significand * power_of_two(exponent);
  return float(code & 0x80 ? -value : value);
}

constexpr std::array<float, 256> fp8_values(Format const& f) {
  std::array<float, 256> values{};
  for (uint32_t code = 0; code < 256; ++code) {
    values[code] = value_of_fp8(f, code);
  }
  return values;
}

constexpr std::array<float, 256> kValuesE4M3 = fp8_values(kFormatE4M3);
constexpr std::array<float, 256> kValuesE5M2 = fp8_values(kFormatE5M2);

uint64_t nan_of(Type type) {
  switch (type) {
    case Type::kF64: return kNanF64;
    case Type::kF32:
    case Type::kTF32: return kNanF32;
    case Type::kE4M3:
    case Type::kE5M2: return kNanFp8;
    default: return kNanHalf;
  }
}

}  // namespace

std::optional<Type> parse_type(std::string_view word) {
  for (TypeInfo const& info : kTypes) {
    if (word == info.name) {
      return info.type;
    }
  }
  return std::nullopt;
}

char const* type_name(Type type) { return kTypes[size_t(type)].name; }

int bits_of(Type type) { return kTypes[size_t(type)].bits; }

bool is_signed(Type type) { return type >= Type::kS8 && type <= Type::kS64; }

bool is_float(Type type) {
  return (type >= Type::kF16 && type <= Type::kF64) || type == Type::kE4M3 || type == Type::kE5M2;
}

double decode(Type type, uint64_t bits) {
  switch (type) {
    case Type::kF16: return float_of_f16(bits);
    case Type::kBF16: return float_of_bf16(bits);
    case Type::kTF32: return as_float(bits & ~uint64_t(0x1fff));
    case Type::kF32: return as_float(bits);
    case Type::kE4M3: return kValuesE4M3[bits & 0xff];
    case Type::kE5M2: return kValuesE5M2[bits & 0xff];
    default: return as_double(bits);
  }
}

uint64_t encode(Type type, double value, Rounding rounding, bool saturate) {
  if (value != value) {
    return nan_of(type);
  }
  if (type == Type::kF64) {
    return bits_of_double(value);
  }
  if (type == Type::kF32 && rounding == Rounding::kNearestEven && !saturate) {
    return bits_of_float(float(value));
  }
  Format const& f = format_of(type);
  if (std::isinf(value)) {
    uint64_t const sign = std::signbit(value) ? f.sign() : 0;
    bool const to_largest = saturate || !f.has_infinity;
    return (sign | (to_largest ? f.largest() : f.infinity())) << f.unused_bits;
  }
  return pack(f, unpack(value), rounding, saturate);
}

uint64_t encode_integer(Type type, bool negative, uint64_t magnitude, Rounding rounding) {
  // Integers have no negative zero.
  return pack(format_of(type), {negative && magnitude != 0, magnitude, 0}, rounding, false);
}

}  // namespace hostsim
