// Rows in e4m3: each kScaleColumns columns of a row divided by the least power of two with which
// the largest of them does not saturate. So a scale is local: who stages a block of a row knows it,
// and none has to wait for the row's end. Multiplying by it is exact.
#pragma once

#include <cuda_runtime.h>
#include <cutlass/cutlass.h>

#include <cstdint>

#include "common/reduce.cuh"
#include "linear/tiles.h"

namespace p_eagle {

inline constexpr int kVecElems = 8;  // of 16 bits
inline constexpr int kBlockVecs = kBlockColumns / kVecElems;

inline constexpr int kFloatMantissaBits = 23;
inline constexpr int kFloatExponentBias = 127;

struct RowScale {
  float scale;
  float inverse;

  // Of columns of which `largest`, at least 0, is the largest magnitude. Not below 2^-64, whose
  // inverse times that of any root mean square is finite.
  CUTLASS_DEVICE static RowScale of(float largest) {
    constexpr int kLeast = kFloatExponentBias - 64;
    constexpr int kLargestExponent = 8;  // of e4m3: 448 = 1.75 * 2^8
    constexpr int kCarry = 0x1fffff;     // reaches the exponent from a mantissa above 1.75
    int const exponent = ((__float_as_int(largest) + kCarry) >> kFloatMantissaBits);
    int const biased = max(exponent - kLargestExponent, kLeast);
    return {__int_as_float(biased << kFloatMantissaBits),
            __int_as_float((2 * kFloatExponentBias - biased) << kFloatMantissaBits)};
  }
};

// The largest magnitude.
template <class Values>
CUTLASS_DEVICE float largest_of(Values const& values) {
  float largest = 0.0f;
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < int(values.size()); ++i) {
    largest = fmaxf(largest, fabsf(values[i]));
  }
  return largest;
}

// The largest of the values of the eight lanes that share a row.
CUTLASS_DEVICE float max_of_row_lanes(float value) {
  CUTLASS_PRAGMA_UNROLL
  for (int offset = 1; offset < kBlockVecs; offset *= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// To the nearest value of e4m3, ties to even, of at most 448: what cvt makes of it, on architectures
// too that have no such instruction.
CUTLASS_DEVICE float round_to_e4m3(float value) {
  constexpr int kLeastExponent = (kFloatExponentBias - 6)
                                 << kFloatMantissaBits;  // of normal values
  // Adding 1.5 times this power of two cuts off what is below the third bit after the first.
  constexpr int kShift = 20 << kFloatMantissaBits;
  constexpr int kHalf = 1 << (kFloatMantissaBits - 1);
  int const exponent = max(__float_as_int(value) & 0x7f800000, kLeastExponent);
  float const coarse = __int_as_float(exponent + kShift + kHalf);
  return __fadd_rn(__fadd_rn(value, coarse), -coarse);
}

}  // namespace p_eagle
