// What the ops with a paged cache check and fill in alike.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "ops.h"

namespace p_eagle {

// What a cache of keys or values holds.
inline CacheType to_cache_type(char const* op, ScalarType type, ScalarType working) {
  switch (type) {
    case ScalarType::Float8_e4m3fn: return CacheType::kE4M3;
    case ScalarType::Float8_e5m2: return CacheType::kE5M2;
    default:
      STD_TORCH_CHECK(type == working, op, ": `k_cache` must have dtype ", working,
                      ", float8_e4m3fn or float8_e5m2, got ", type);
      return CacheType::kElement;
  }
}

inline PagedCache check_cache(char const* op, char const* name, Tensor& cache, Tensor const& scale,
                              char const* scale_name, int32_t device, ScalarType type,
                              std::initializer_list<int64_t> shape) {
  int32_t const found = cache.get_device_index();
  STD_TORCH_CHECK(is_on_device(cache) && found == device, op, ": `", name, "` must be on ",
                  device_name(device));
  STD_TORCH_CHECK(cache.scalar_type() == type, op, ": `", name, "` must have dtype ", type,
                  ", got ", cache.scalar_type());
  Shape const want{{shape.begin(), shape.size()}};
  STD_TORCH_CHECK(std::ranges::equal(want.sizes, shape_of(cache).sizes), op, ": `", name,
                  "` must have shape ", want, ", got ", shape_of(cache));
  Shape const strides{{cache.strides().data(), cache.strides().size()}};
  STD_TORCH_CHECK(cache.stride(3) == 1, op, ": `", name,
                  "` must be contiguous in its last dimension, got strides ", strides);
  check_tensor(op, scale_name, scale, device, ScalarType::Float, {1});
  return {.data = cache.mutable_data_ptr(),
          .scale = scale.const_data_ptr<float>(),
          .block_stride = cache.stride(0),
          .head_stride = cache.stride(1),
          .slot_stride = cache.stride(2)};
}

}  // namespace p_eagle
