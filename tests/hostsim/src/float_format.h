// How floating-point instructions see the bits of a register: formats, which load values and store
// results, and operations made of a format, a function on its values, and what is done to the result.
#pragma once

#include "elementwise.h"
#include "number.h"

namespace hostsim {

// ---- Formats. load() ignores bits above its width; store() gives the canonical NaN for any NaN. -----

struct F32 {
  using Value = float;
  static constexpr uint64_t kSign = 0x8000'0000;
  static constexpr uint64_t kExponent = 0x7f80'0000;
  static float load(uint64_t bits) { return as_float(bits); }
  static uint64_t store(float value) { return value != value ? kNanF32 : bits_of_float(value); }
};

struct F64 {
  using Value = double;
  static constexpr uint64_t kSign = uint64_t(1) << 63;
  static constexpr uint64_t kExponent = uint64_t(0x7ff) << 52;
  static double load(uint64_t bits) { return as_double(bits); }
  static uint64_t store(double value) { return value != value ? kNanF64 : bits_of_double(value); }
};

// A double as an f32 with the last bit set if anything was cut off: rounding that to a format of fewer
// bits gives what rounding the double would.
inline float cut_to_odd(double value) {
  float const nearest = float(value);
  uint64_t bits = bits_of_float(nearest);
  bool const inexact = double(nearest) < value || double(nearest) > value;
  if (inexact && (bits & 1) == 0) {
    bool const too_small = (double(nearest) < value) == (value > 0);
    bits += too_small ? 1 : uint64_t(-1);
  }
  return as_float(bits);
}

// The 16-bit formats compute in f32, or where that would round twice, in double.
struct F16 {
  using Value = float;
  static constexpr uint64_t kSign = 0x8000;
  static constexpr uint64_t kExponent = 0x7c00;
  static float load(uint64_t bits) { return float_of_f16(bits); }
  static uint64_t store(float value) { return f16_of_float(value); }
  static uint64_t store(double value) { return f16_of_float(cut_to_odd(value)); }
};

struct BF16 {
  using Value = float;
  static constexpr uint64_t kSign = 0x8000;
  static constexpr uint64_t kExponent = 0x7f80;
  static float load(uint64_t bits) { return float_of_bf16(bits); }
  static uint64_t store(float value) { return bf16_of_float(value); }
  static uint64_t store(double value) { return bf16_of_float(cut_to_odd(value)); }
};

// .ftz: subnormal sources and results count as zeros of their sign.
template <class Format>
struct Flushed {
  using Value = typename Format::Value;
  static uint64_t flush(uint64_t bits) {
    return (bits & Format::kExponent) != 0 ? bits : bits & Format::kSign;
  }
  static Value load(uint64_t bits) { return Format::load(flush(bits)); }
  template <class Result>
  static uint64_t store(Result value) {
    return flush(Format::store(value));
  }
};

// ---- What is done to a result -----------------------------------------------------------------------

struct Unchanged {
  template <class Value>
  Value operator()(Value value) const {
    return value;
  }
};

// .sat: clamped to [0, 1]; NaN becomes +0.
struct Saturated {
  template <class Value>
  Value operator()(Value value) const {
    return value > 0 ? (value < 1 ? value : Value(1)) : Value(0);
  }
};

// .relu: negative results become +0; NaN stays.
struct Rectified {
  template <class Value>
  Value operator()(Value value) const {
    return value <= 0 ? Value(0) : value;
  }
};

// ---- Operations -------------------------------------------------------------------------------------

template <class Format, class Function, class Finish = Unchanged>
struct FloatOp {
  template <class... Bits>
  static uint64_t apply(Bits... bits) {
    return Format::store(Finish()(Function()(Format::load(bits)...)));
  }
};

// The same on both 16-bit halves.
template <class Format, class Function, class Finish = Unchanged>
struct PackedFloatOp {
  template <class... Bits>
  static uint64_t apply(Bits... bits) {
    uint64_t const low = FloatOp<Format, Function, Finish>::apply(bits...);
    uint64_t const high = FloatOp<Format, Function, Finish>::apply((bits >> 16)...);
    return high << 16 | low;
  }
};

}  // namespace hostsim
