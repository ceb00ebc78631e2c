// The number formats of PTX on the host: types, and conversions that are exact or rounded once.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>

namespace hostsim {

enum class Type : uint8_t {
  kPred,
  kB8,
  kB16,
  kB32,
  kB64,
  kB128,
  kU8,
  kU16,
  kU32,
  kU64,
  kS8,
  kS16,
  kS32,
  kS64,
  kF16,
  kBF16,
  kTF32,
  kF32,
  kF64,
  kF16x2,
  kBF16x2,
  kE4M3,
  kE5M2,
  kE4M3x2,
  kE5M2x2,
  kU16x2,
  kS16x2,
};

std::optional<Type> parse_type(std::string_view word);  // "bf16x2" -> kBF16x2
char const* type_name(Type type);
int bits_of(Type type);  // 32 for kTF32, 1 for kPred
inline int bytes_of(Type type) { return (bits_of(type) + 7) / 8; }
bool is_signed(Type type);  // kS8 .. kS64
bool is_float(Type type);   // kF16, kBF16, kTF32, kF32, kF64 and the 8-bit ones; not packed pairs

enum class Rounding : uint8_t { kNearestEven, kZero, kDown, kUp, kNearestAway };

// Value of one element of a floating type given its bits, exactly.
double decode(Type type, uint64_t bits);

// Bits of `value` in a floating type, rounded once. Overflow gives infinity, or with `saturate`
// (".satfinite") the largest finite value; kE4M3 has no infinity and always saturates. NaN becomes
// the canonical NaN (0x7fffffff, 0x7fff, 0x7f).
uint64_t encode(Type type, double value, Rounding rounding = Rounding::kNearestEven,
                bool saturate = false);

// The same of an integer, given by sign and magnitude.
uint64_t encode_integer(Type type, bool negative, uint64_t magnitude,
                        Rounding rounding = Rounding::kNearestEven);

inline float as_float(uint64_t bits) { return std::bit_cast<float>(uint32_t(bits)); }
inline double as_double(uint64_t bits) { return std::bit_cast<double>(bits); }
inline uint64_t bits_of_float(float x) { return std::bit_cast<uint32_t>(x); }
inline uint64_t bits_of_double(double x) { return std::bit_cast<uint64_t>(x); }

// ---- The formats that kernels convert all the time, inline ------------------------------------------

inline constexpr uint64_t kNanF32 = 0x7fffffff;
inline constexpr uint64_t kNanF64 = 0x7ff8'0000'0000'0000;
inline constexpr uint64_t kNanHalf = 0x7fff;  // f16 and bf16
inline constexpr uint64_t kNanFp8 = 0x7f;     // e4m3 and e5m2

inline float float_of_bf16(uint64_t bits) { return as_float((bits & 0xffff) << 16); }

inline float float_of_f16(uint64_t bits) {
  uint64_t const magnitude = bits & 0x7fff;
  // The fields of an f16 in those of an f32 mean 2^-112 of its value, also where it is subnormal.
  uint64_t result = bits_of_float(as_float(magnitude << 13) * 0x1p112f);
  if (magnitude >= 0x7c00) {
    result |= 0x7f80'0000;
  }
  return as_float(result | (bits & 0x8000) << 16);
}

// To nearest even.
inline uint64_t bf16_of_float(float value) {
  uint64_t const bits = bits_of_float(value);
  uint64_t const rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return value != value ? kNanHalf : rounded;
}

// The magnitude of an f32 in a format of fewer bits and smaller exponents, to nearest even. What is
// too large for the format gives a code above that of its largest number.
template <int kExponentBits, int kMantissaBits>
uint32_t narrow_magnitude(uint32_t magnitude) {
  constexpr uint32_t kRebias = 128 - (1u << (kExponentBits - 1));  // difference of the biases
  constexpr int kDropped = 23 - kMantissaBits;
  if (magnitude < (kRebias + 1) << 23) {
    // Subnormal results are multiples of 2^(kRebias - 126 - kMantissaBits). This has that last place.
    float const unit = as_float((kRebias + 1 + kDropped) << 23);
    return uint32_t(bits_of_float(as_float(magnitude) + unit) - bits_of_float(unit));
  }
  uint32_t const rounded = magnitude + (1u << (kDropped - 1)) - 1 + (magnitude >> kDropped & 1);
  return (rounded - (kRebias << 23)) >> kDropped;
}

// To nearest even.
inline uint64_t f16_of_float(float value) {
  uint64_t const bits = bits_of_float(value);
  uint32_t const code = narrow_magnitude<5, 10>(bits & 0x7fff'ffff);
  uint64_t const limited = code < 0x7c00 ? code : 0x7c00;
  return value != value ? kNanHalf : (bits >> 16 & 0x8000) | limited;
}

// To nearest even, and numbers of large magnitude to the largest: .rn.satfinite.
inline uint64_t e4m3_of_float(float value) {
  uint64_t const bits = bits_of_float(value);
  uint32_t const code = narrow_magnitude<4, 3>(bits & 0x7fff'ffff);
  uint64_t const limited = code < 0x7e ? code : 0x7e;
  return value != value ? kNanFp8 : (bits >> 24 & 0x80) | limited;
}

inline uint64_t e5m2_of_float(float value) {
  uint64_t const bits = bits_of_float(value);
  uint32_t const code = narrow_magnitude<5, 2>(bits & 0x7fff'ffff);
  uint64_t const limited = code < 0x7b ? code : 0x7b;
  return value != value ? kNanFp8 : (bits >> 24 & 0x80) | limited;
}

}  // namespace hostsim
