// What a CUtensorMap says: a tensor in global memory, and the box of it that one copy moves.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "number.h"

namespace hostsim {

inline constexpr int kMaxTensorRank = 5;

// Our own contents of the 128 opaque bytes. Kernels pass them around and change them only through
// tensormap.replace.
struct alignas(64) TensorMap {
  static constexpr uint32_t kMark = 0x70616d74;
  static constexpr size_t kAlignment = 64;

  uint32_t mark = kMark;
  uint8_t rank = 0;
  Type type = Type::kU8;
  uint8_t swizzle = 0;  // 0: none; n: 16-byte chunks within spans of 16 << n bytes
  bool fills_nan = false;
  // CUTLASS clears a bit of this word, as some drivers want it, so it holds nothing.
  uint64_t unused = 0;
  uint64_t address = 0;
  std::array<uint64_t, kMaxTensorRank - 1> strides{};  // in bytes, from the second dimension on
  std::array<uint32_t, kMaxTensorRank> last{};         // size of each dimension, less one
  std::array<uint16_t, kMaxTensorRank> box{};          // elements of a copy, before element strides
  std::array<uint8_t, kMaxTensorRank> element_strides{};  // that of the first dimension is ignored

  int64_t size(int dimension) const { return int64_t(last[size_t(dimension)]) + 1; }
  int element_bytes() const { return bytes_of(type); }
  int element_stride(int dimension) const {
    return dimension == 0 ? 1 : element_strides[size_t(dimension)];
  }
  // Elements of the box in shared memory.
  int extent(int dimension) const {
    int const stride = element_stride(dimension);
    return (box[size_t(dimension)] + stride - 1) / stride;
  }
  uint32_t row_bytes() const { return uint32_t(box[0]) * uint32_t(element_bytes()); }
  uint32_t swizzle_span() const { return 16u << swizzle; }
  uint32_t num_rows() const;
  uint32_t box_bytes() const { return num_rows() * row_bytes(); }
};

// What the driver's rules for tensor maps say against it; "" if nothing.
std::string find_error(TensorMap const& map);

}  // namespace hostsim
