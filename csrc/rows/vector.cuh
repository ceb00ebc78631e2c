// Rows in vectors of kWidth elements: 8, which is 16 bytes, where the rows are aligned to that, and 1
// where they are not.
#pragma once

#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>
#include <cutlass/numeric_types.h>

#include <cstdint>
#include <initializer_list>

#include "ops.h"

namespace p_eagle {

inline constexpr int kWideVector = 8;

template <class Element_, int kWidth_>
struct RowVector {
  using Element = Element_;
  static constexpr int kWidth = kWidth_;
  using Vec = cutlass::AlignedArray<Element, kWidth>;
  using Values = cutlass::Array<float, kWidth>;

  // Vector `index` of the row or whatever else starts at `data`.
  CUTLASS_DEVICE static Vec load(void const* data, int64_t index) {
    return static_cast<Vec const*>(data)[index];
  }

  CUTLASS_DEVICE static void store(void* data, int64_t index, Vec const& vec) {
    static_cast<Vec*>(data)[index] = vec;
  }

  CUTLASS_DEVICE static Values to_float(Vec const& vec) {
    return cutlass::NumericArrayConverter<float, Element, kWidth>::convert(vec);
  }

  CUTLASS_DEVICE static Vec rounded(Values const& values) {
    Vec vec;
    static_cast<cutlass::Array<Element, kWidth>&>(vec) =
        cutlass::NumericArrayConverter<Element, float, kWidth>::convert(values);
    return vec;
  }
};

// Whether rows of `width` elements of 16 bits that start at these addresses, or at null, can be read
// in wide vectors.
inline bool are_wide(int width, std::initializer_list<void const*> addresses) {
  uintptr_t bits = 0;
  for (void const* address : addresses) {
    bits |= reinterpret_cast<uintptr_t>(address);
  }
  return width % kWideVector == 0 && bits % 16 == 0;
}

// Calls launch.operator()<RowVector>() with what fits the rows.
template <class Launch>
cudaError_t dispatch_rows(DType dtype, bool is_wide, Launch const& launch) {
  switch (dtype) {
    case DType::kBFloat16:
      return is_wide ? launch.template operator()<RowVector<cutlass::bfloat16_t, kWideVector>>()
                     : launch.template operator()<RowVector<cutlass::bfloat16_t, 1>>();
    case DType::kHalf:
      return is_wide ? launch.template operator()<RowVector<cutlass::half_t, kWideVector>>()
                     : launch.template operator()<RowVector<cutlass::half_t, 1>>();
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
