// What becomes of the heads of a row, whoever has multiplied them: rotation, and a place in the paged
// cache.
#pragma once

#include <cutlass/array.h>
#include <cutlass/float8.h>
#include <cutlass/numeric_conversion.h>

#include <cstdint>

#include "ops.h"

namespace p_eagle {

CUTLASS_DEVICE float2 rotated(float2 x, float cosine, float sine) {
  return {x.x * cosine - x.y * sine, x.y * cosine + x.x * sine};
}

// The row of `rope` that a position takes.
CUTLASS_DEVICE int64_t rope_row(int64_t position, int num_positions) {
  int64_t const last = num_positions - 1;
  return position < last ? position : last;
}

// Where a head of a slot starts, in elements.
CUTLASS_DEVICE int64_t cache_place(PagedCache const& cache, int64_t slot, int block_size,
                                   int head) {
  return slot / block_size * cache.block_stride + head * cache.head_stride +
         slot % block_size * cache.slot_stride;
}

// Divides the index, and does not cast the address: of an address that comes out of elements the
// compiler does not believe that it is aligned, and stores it in pieces.
template <class Stored, int kValues>
CUTLASS_DEVICE void store_values(void* data, int64_t index,
                                 cutlass::Array<float, kValues> const& values) {
  cutlass::AlignedArray<Stored, kValues> stored;
  static_cast<cutlass::Array<Stored, kValues>&>(stored) =
      cutlass::NumericArrayConverter<Stored, float, kValues>::convert(values);
  static_cast<cutlass::AlignedArray<Stored, kValues>*>(data)[index / kValues] = stored;
}

// Stores adjacent values; where they are more than one, the address and the index are aligned.
template <class Element, int kValues>
CUTLASS_DEVICE void store_to_cache(PagedCache const& cache, CacheType type, int64_t index,
                                   cutlass::Array<float, kValues> values) {
  if (type == CacheType::kElement) {
    store_values<Element>(cache.data, index, values);
    return;
  }
  float const scale = *cache.scale;
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < kValues; ++i) {
    values[i] /= scale;
  }
  if (type == CacheType::kE4M3) {
    store_values<cutlass::float_e4m3_t>(cache.data, index, values);
  } else {
    store_values<cutlass::float_e5m2_t>(cache.data, index, values);
  }
}

template <class Element>
CUTLASS_DEVICE void store_to_cache(PagedCache const& cache, CacheType type, int64_t index,
                                   float value) {
  cutlass::Array<float, 1> values;
  values[0] = value;
  store_to_cache<Element, 1>(cache, type, index, values);
}

}  // namespace p_eagle
