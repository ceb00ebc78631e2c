// How the attention of a pass is divided among thread blocks, and what lies where in the two
// tensors that the ops pass along: `work`, the map, and `workspace`, the partial results. Plain C++,
// for the kernels, their host layer and the Python module alike.
#pragma once

#include <cstdint>

namespace p_eagle {

inline constexpr int kAttentionTileRows =
    128;  // packed rows, (row, head of the group), of a segment
inline constexpr int kAttentionTileKeys = 64;
inline constexpr int kAttentionMinTiles = 4;  // of a block, or merging would cost more than reading
inline constexpr int kAttentionTreeRows = 64;  // bits of a row's mask
inline constexpr int kAttentionMaxKeys = 1 << 30;

// One block per SM reads enough ahead to cover the latency of memory; two also overlap the end of a
// piece with the start of another, where registers and shared memory allow it.
constexpr int attention_blocks_per_sm(int head_dim, int64_t shared_bytes_per_sm) {
  return head_dim <= 64 && shared_bytes_per_sm >= 2 * 66 * 1024 ? 2 : 1;
}

// A tile of packed rows of a request, and the keys that some of the rows may see.
struct alignas(16) AttentionSegment {
  int32_t request;
  int32_t row_tile;
  int32_t first_tile;  // of keys
  int32_t num_tiles;   // at least one, also where there is no key
  int32_t line_start;  // tiles before this segment, of all heads
  int32_t key_begin;
  int32_t key_end;
  int32_t unused;
};

struct alignas(16) AttentionWorkHeader {
  int32_t num_segments;
  int32_t num_tiles;        // of all segments and heads
  int32_t tiles_per_block;  // block i takes those from i * tiles_per_block on
  int32_t arrivals;         // of the blocks of prepare_inputs; zero between launches
  int32_t unused[4];
};

static_assert(sizeof(AttentionSegment) == 32 && sizeof(AttentionWorkHeader) == 32);

// The map, in int32 words: the header, the segments, the first segment of each request, and the
// segment in which each block starts. The size of the tensor says how many blocks there are.
struct AttentionWorkLayout {
  int64_t num_rows;
  int64_t num_requests;
  int64_t group;  // query heads per KV head

  // A request's last tile of rows may be partial.
  constexpr int64_t max_segments() const {
    return num_requests + num_rows * group / kAttentionTileRows;
  }
  constexpr int64_t segments() const { return sizeof(AttentionWorkHeader) / sizeof(int32_t); }
  constexpr int64_t request_segments() const {
    return segments() + max_segments() * int64_t(sizeof(AttentionSegment) / sizeof(int32_t));
  }
  constexpr int64_t first_segments() const { return request_segments() + num_requests; }
  constexpr int64_t size(int64_t num_blocks) const { return first_segments() + num_blocks; }
  constexpr int64_t num_blocks(int64_t size) const { return size - first_segments(); }
};

// The workspace: a counter per block, zero between launches, then two partial results per block, of
// the piece that began in an earlier block and of the one that goes on in the next.
struct AttentionWorkspaceLayout {
  int64_t num_blocks;
  int64_t head_dim;

  static constexpr int64_t kPartialsPerBlock = 2;

  constexpr int64_t partials() const { return (num_blocks * 4 + 15) / 16 * 16; }  // bytes before
  // Of a partial result: the sums of weighted values, row by row, then maxima, then sums of weights.
  constexpr int64_t partial_floats() const { return kAttentionTileRows * (head_dim + 2); }
  constexpr int64_t bytes() const {
    return partials() + num_blocks * kPartialsPerBlock * partial_floats() * int64_t(sizeof(float));
  }
};

}  // namespace p_eagle
