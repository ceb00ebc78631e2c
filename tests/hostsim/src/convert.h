// What the conversions of single values and of packed pairs share.
#pragma once

#include "bind.h"
#include "number.h"

namespace hostsim {

enum class Integral { kNo, kNearestEven, kZero, kDown, kUp };  // .rni, .rzi, .rmi, .rpi

struct Conversion : Detail {
  Type from = Type::kF32;
  Type to = Type::kF32;
  bool has_rounding = false;
  Rounding rounding = Rounding::kNearestEven;
  Integral integral = Integral::kNo;
  bool flush = false;       // .ftz, of sources and results in f32
  bool saturate = false;    // .sat
  bool rectify = false;     // .relu
  bool to_largest = false;  // .satfinite

  // Rounds to nearest and changes no value beyond that.
  bool is_plain() const {
    return rounding == Rounding::kNearestEven && integral == Integral::kNo && !flush && !saturate &&
           !rectify && !to_largest;
  }
};

// Of one floating-point value to another floating-point type; from and to are types of elements.
uint64_t convert_float(Conversion const& conversion, uint64_t bits);

// cvt where either type is a packed pair, in ops_convert_packed.cpp.
void bind_packed_conversion(Instruction& in, Modifiers& modifiers,
                            std::unique_ptr<Conversion> conversion);
void bind_pack_saturated(Instruction& in);  // cvt.pack

}  // namespace hostsim
