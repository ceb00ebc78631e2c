// How the head is cut into tiles, dealt to CTAs, and where these leave what they have found: for
// the kernel, for the host layer, and for whoever allocates the workspace. Plain C++.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "linear/partition.h"
#include "linear/tiles.h"

namespace p_eagle {

inline constexpr int kMaxTopK = 16;
inline constexpr int kHeadRows = 128;  // of the weight, in a tile

// Chosen like kLinearTiles. Up to 64 tokens a CTA leaves half of its SM's shared memory to the
// kernels before and after it.
struct HeadTile {
  int tokens;        // columns of the product; a launch has more tiles of them where rows are more
  int weight_bytes;  // of one element
  int stages;        // blocks of the weight in shared memory
};

inline constexpr HeadTile kHeadTiles[] = {
    {8, 2, 6},  {16, 2, 6},  {32, 2, 5},  {64, 2, 4}, {128, 2, 5},  {256, 2, 4},  // 16-bit weights
    {8, 1, 12}, {16, 1, 12}, {32, 1, 10}, {64, 1, 8}, {128, 1, 10}, {256, 1, 8},  // e4m3
};

inline constexpr int kMaxHeadTokens = 256;
inline constexpr int kMaxHeadTokenTiles = 256;

// The fewest tokens of a tile that hold so many rows.
constexpr int head_tokens(int num_samples) {
  int tokens = 8;
  while (tokens < num_samples && tokens < kMaxHeadTokens) {
    tokens *= 2;
  }
  return tokens;
}

constexpr HeadTile head_tile(int tokens, int weight_bytes) {
  for (HeadTile const& tile : kHeadTiles) {
    if (tile.tokens == tokens && tile.weight_bytes == weight_bytes) {
      return tile;
    }
  }
  throw std::invalid_argument("head_tile: no such tile");
}

// Each CTA takes a run of the weight's rows, as long as the others' but for kWarpRows, and so
// streams as many bytes. Only its last tile may have rows missing, which costs no bytes. The runs
// depend on the number of rows of the weight and on the device alone, never on how many rows are
// sampled, and with them the order of sums.
struct HeadPartition {
  int num_rows;  // of the weight, those that there are
  int num_ctas;  // all of which have rows

  P_EAGLE_HOST_DEVICE static constexpr HeadPartition make(int num_rows, int max_ctas) {
    int const granules = (num_rows + kWarpRows - 1) / kWarpRows;
    return {num_rows, granules < max_ctas ? granules : max_ctas};
  }

  // The first row of a CTA, and past the last of the one before.
  P_EAGLE_HOST_DEVICE constexpr int first_row(int cta) const {
    int const granules = (num_rows + kWarpRows - 1) / kWarpRows;
    int const row = int(int64_t(cta) * granules / num_ctas) * kWarpRows;
    return row < num_rows ? row : num_rows;
  }
};

// At most as many lists as the lanes of a warp can merge.
inline constexpr int kHeadLaneLists = 8;
inline constexpr int kMaxHeadCtas = 32 * kHeadLaneLists;

constexpr int head_grid(int num_sms) { return std::min(num_sms, kMaxHeadCtas); }

// For each sampled row what each CTA has found: the maximum of its logits and the sum of their
// exponentials, and its best, as keys (order.cuh) with their logits. CTAs are innermost, so that a
// warp reads the first of all lists at once. Before that a counter of arrivals for each tile of
// tokens, at the same place whatever the sizes are.
struct HeadWorkspaceLayout {
  static constexpr int64_t kSumsOffset = kMaxHeadTokenTiles * int64_t(sizeof(int32_t));

  int num_ctas;
  int num_samples;
  int top_k;

  P_EAGLE_HOST_DEVICE constexpr int64_t sum_index(int sample, int cta) const {
    return int64_t(sample) * num_ctas + cta;
  }
  P_EAGLE_HOST_DEVICE constexpr int64_t entry_index(int sample, int place, int cta) const {
    return (int64_t(sample) * top_k + place) * num_ctas + cta;
  }
  P_EAGLE_HOST_DEVICE constexpr int64_t keys_offset() const {
    return kSumsOffset + sum_index(num_samples, 0) * 2 * int64_t(sizeof(float));
  }
  P_EAGLE_HOST_DEVICE constexpr int64_t logits_offset() const {
    return keys_offset() + entry_index(num_samples, 0, 0) * int64_t(sizeof(uint64_t));
  }
  P_EAGLE_HOST_DEVICE constexpr int64_t size() const {
    return logits_offset() + entry_index(num_samples, 0, 0) * int64_t(sizeof(float));
  }
};

// What the workspace must hold on a device of this many SMs, for at most so many sampled rows.
constexpr int64_t lm_head_workspace_bytes(int num_sms, int num_samples, int top_k) {
  return HeadWorkspaceLayout{head_grid(num_sms), num_samples, top_k}.size();
}

}  // namespace p_eagle
