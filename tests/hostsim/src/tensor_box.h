// Where the elements of a tensor copy lie in global and in shared memory.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "tensor_map.h"

namespace hostsim {

using TensorCoordinates = std::array<int32_t, kMaxTensorRank>;

// The part of a row of the box that lies inside the tensor.
struct BoxPiece {
  uint64_t global;  // address
  uint32_t place;   // in the box, in bytes, before swizzling
  uint32_t bytes;
};

// All pieces of the box whose first element has these coordinates, row by row.
std::vector<BoxPiece> pieces_of_box(TensorMap const& map, TensorCoordinates const& first);

// The swizzle exchanges the 16-byte chunks of a span, differently for each of up to eight spans. It
// goes by bits of the shared address, of which `offset` is the part inside the block.
inline uint32_t swizzled(TensorMap const& map, uint32_t offset) {
  uint32_t const chunk_bits = map.swizzle_span() - 16;
  return offset ^ (offset >> 3 & chunk_bits);
}

// Calls f(shared offset, offset in the range, bytes) for parts of `bytes` bytes of a box that stay
// together in shared memory.
template <class F>
void for_each_chunk(TensorMap const& map, uint32_t shared_offset, uint32_t bytes, F&& f) {
  if (map.swizzle == 0) {
    f(shared_offset, 0u, bytes);
    return;
  }
  for (uint32_t done = 0; done < bytes;) {
    uint32_t const from = shared_offset + done;
    uint32_t const part = std::min(16 - from % 16, bytes - done);
    f(swizzled(map, from), done, part);
    done += part;
  }
}

}  // namespace hostsim
