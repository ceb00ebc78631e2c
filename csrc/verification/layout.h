// Into which tiles a row of the target's logits is cut, and where what is known of them lies: for
// the kernels, for the host layer, and for whoever allocates the workspace. Plain C++.
#pragma once

#include <cstdint>

#include "linear/partition.h"

namespace p_eagle {

inline constexpr int kVerifyThreads = 256;
inline constexpr int kThreadLogits = 16;  // of a tile, that a thread takes
inline constexpr int kVerifyTile = kVerifyThreads * kThreadLogits;

// For each row and tile a key of its largest logit (head/order.cuh) and the sum of exponentials
// relative to that. Tiles of a row are adjacent. Where walks are lazy, each node of each request
// counts as a row, so that nobody depends on another request.
struct VerifyWorkspaceLayout {
  int64_t num_rows;
  int64_t vocab_size;

  P_EAGLE_HOST_DEVICE constexpr int64_t num_tiles() const {
    return (vocab_size + kVerifyTile - 1) / kVerifyTile;
  }

  P_EAGLE_HOST_DEVICE constexpr int64_t sums_offset() const {
    return num_rows * num_tiles() * int64_t(sizeof(uint64_t));
  }

  constexpr int64_t bytes() const {
    return sums_offset() + num_rows * num_tiles() * int64_t(sizeof(float));
  }
};

constexpr int64_t verify_workspace_bytes(int64_t num_rows, int64_t vocab_size) {
  return VerifyWorkspaceLayout{num_rows, vocab_size}.bytes();
}

}  // namespace p_eagle
