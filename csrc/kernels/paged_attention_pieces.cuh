// The parts of the kernel of paged_attention: what is known at compile time, the pieces of work,
// the copies of keys and values to shared memory, and the queries of a warp.
#pragma once

#include <cutlass/numeric_types.h>

#include <algorithm>
#include <cassert>
#include <type_traits>

#include "common/attention_layout.h"
#include "common/attention_softmax.cuh"
#include "common/attention_tiles.cuh"
#include "common/attention_work.cuh"
#include "common/launch.h"
#include "ops.h"

namespace p_eagle {

// ---- Configuration: everything known at compile time --------------------------------------------

template <class Element_, class Cache_, int kHeadDim_>
struct PagedAttentionConfig {
  using Element = Element_;
  using Tile = KeyValueTile<Cache_, kHeadDim_>;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kThreads = 256;
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kBlocksPerSm = attention_blocks_per_sm(kHeadDim, 228 * 1024);

  // As much as is in flight at a time; 96 KB of shared memory is what every GPU since sm_80 has.
  static constexpr int kStageBytes = 2 * Tile::kBytes;
  static constexpr int kStages = std::clamp(64 * 1024 / kStageBytes, 3, 6);
  static constexpr int kAhead = kStages - 1;  // tiles in flight beside the one that is used
  static constexpr int kSmemBytes = kStages * kStageBytes;

  // Copies of 16 bytes that a thread makes of a tile's keys; as many of its values.
  static constexpr int kRowsPerPass = kThreads / Tile::kChunks;
  static constexpr int kCopies = kAttentionTileKeys / kRowsPerPass;

  // bfloat16 queries become float16 for FP8 keys, whose products are in float16.
  static constexpr bool kConvertsQuery = !std::is_same_v<Element, typename Tile::Element>;

  static constexpr int kWarpStateBytes = RowSoftmax<Tile>::kFloats * kWarpSize * 4;
  static_assert(kWarps * 16 == kAttentionTileRows);
  static_assert((kWarps - 2) * kWarpStateBytes <= kSmemBytes, "warps merge where the tiles were");
  static_assert(kSmemBytes <= 96 * 1024);
};

// ---- A piece of the work ------------------------------------------------------------------------

// Part of the keys of one tile of rows and one KV head.
struct AttentionPiece {
  AttentionSegment segment;
  int head;       // KV head
  int tile;       // of keys, counted from the segment's first
  int num_tiles;  // from there on
  int group;
  int row_begin;    // the request's first row
  int packed_rows;  // of the tile of rows

  // The first and the last block that has a piece of these rows and this head.
  int first_block;
  int last_block;

  CUTLASS_DEVICE bool is_whole() const { return num_tiles == segment.num_tiles; }
  CUTLASS_DEVICE int first_key() const { return (segment.first_tile + tile) * kAttentionTileKeys; }
  // Which row of the request, and which head, a packed row is.
  CUTLASS_DEVICE int row(int packed) const {
    return row_begin + (segment.row_tile * kAttentionTileRows + packed) / group;
  }
  CUTLASS_DEVICE int query_head(int packed) const {
    return head * group + (segment.row_tile * kAttentionTileRows + packed) % group;
  }
};

// The pieces of a block, one after the other. Lies in shared memory, as one thread works it out and
// registers are few.
struct AttentionPieces {
  AttentionPiece piece;
  bool has_piece;

  // One thread calls these, others read after a barrier.

  CUTLASS_DEVICE void start(PagedAttentionParams const& params) {
    auto const& header = *reinterpret_cast<AttentionWorkHeader const*>(params.work);
    piece.group = params.num_heads / params.num_kv_heads;
    tiles_per_block = header.tiles_per_block;
    int64_t const begin = int64_t(blockIdx.x) * tiles_per_block;
    int64_t const end = begin + tiles_per_block;
    place = int(begin < header.num_tiles ? begin : header.num_tiles);
    end_place = int(end < header.num_tiles ? end : header.num_tiles);
    assert(tiles_per_block > 0);
    if (place < end_place) {
      index = params.work[layout(params).first_segments() + blockIdx.x];
      assert(0 <= index && index < header.num_segments);
      piece.segment = segment(params, index);
    }
    next(params);
  }

  CUTLASS_DEVICE void next(PagedAttentionParams const& params) {
    has_piece = place < end_place;
    if (!has_piece) {
      return;
    }
    AttentionSegment current = piece.segment;
    if (place == current.line_start + current.num_tiles * params.num_kv_heads) {
      current = segment(params, ++index);
      piece.segment = current;
    }
    assert(0 <= current.request && current.request < params.num_requests);
    RequestRows const rows(params.row_start, current.request, params.num_rows);
    piece.row_begin = rows.begin;
    piece.packed_rows =
        min(rows.count * piece.group - current.row_tile * kAttentionTileRows, kAttentionTileRows);
    piece.head = (place - current.line_start) / current.num_tiles;
    piece.tile = (place - current.line_start) % current.num_tiles;
    piece.num_tiles = min(current.num_tiles - piece.tile, end_place - place);
    piece.first_block = (place - piece.tile) / tiles_per_block;
    piece.last_block = (place - piece.tile + current.num_tiles - 1) / tiles_per_block;
    place += piece.num_tiles;
  }

 private:
  CUTLASS_DEVICE AttentionWorkLayout layout(PagedAttentionParams const& params) const {
    return {params.num_rows, params.num_requests, piece.group};
  }
  CUTLASS_DEVICE AttentionSegment segment(PagedAttentionParams const& params, int i) const {
    return reinterpret_cast<AttentionSegment const*>(params.work + layout(params).segments())[i];
  }

  int index;  // of the segment
  int tiles_per_block;
  int place;  // in the line of all tiles
  int end_place;
};

// ---- Loading keys and values --------------------------------------------------------------------

// The cache blocks of a piece's next tiles. A tile has at most 4: a block has 16 keys or more.
struct PageWindow {
  static constexpr int kKeysPerPage = 16;  // of the smallest blocks
  static constexpr int kPages = kAttentionTileKeys / kKeysPerPage;
  static constexpr int kTiles = 8;

  int block[kTiles][kPages];

  CUTLASS_DEVICE int& at(int tile, int page) { return block[tile % kTiles][page]; }
};

// One thread's part of copying a piece's tiles to shared memory.
template <class Config>
class KeyValueLoader {
 public:
  using Tile = typename Config::Tile;
  using Cache = typename Tile::Cache;

  CUTLASS_DEVICE KeyValueLoader(PagedAttentionParams const& params, AttentionPiece const& piece,
                                int thread)
      : params_(params),
        piece_(piece),
        k_(static_cast<Cache const*>(params.k_cache) + piece.head * params.k_head_stride),
        v_(static_cast<Cache const*>(params.v_cache) + piece.head * params.v_head_stride),
        row_(thread / Tile::kChunks),
        chunk_(thread % Tile::kChunks) {}

  // The cache block of a page of a tile; negative: all of it is zeros.
  CUTLASS_DEVICE int find(int tile, int page) const {
    int const key =
        piece_.first_key() + tile * kAttentionTileKeys + page * PageWindow::kKeysPerPage;
    AttentionSegment const& segment = piece_.segment;
    if (key + PageWindow::kKeysPerPage <= segment.key_begin || key >= segment.key_end) {
      return -1;
    }
    int const* const table = params_.block_table + int64_t(segment.request) * params_.max_blocks;
    int const block = table[key >> (__ffs(params_.block_size) - 1)];
    return block < params_.num_cache_blocks ? block : -1;
  }

  // Starts the copies of a tile to a stage; they belong to the thread's next group.
  CUTLASS_DEVICE void load(int tile, PageWindow& pages, char* stage) const {
    using Copy = cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>;
    int const tile_key = piece_.first_key() + tile * kAttentionTileKeys;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Config::kCopies; ++i) {
      int const row = row_ + i * Config::kRowsPerPass;
      int const key = tile_key + row;
      int const block = pages.at(tile, row / PageWindow::kKeysPerPage);
      bool const exists =
          block >= 0 && piece_.segment.key_begin <= key && key < piece_.segment.key_end;
      int64_t const source_block = exists ? block : 0;
      int const source_row = exists ? key & (params_.block_size - 1) : 0;
      int const target = Tile::offset(row, chunk_);
      Copy::copy(
          vector(k_ + source_block * params_.k_block_stride + source_row * params_.k_row_stride),
          *reinterpret_cast<cute::uint128_t*>(stage + target), exists);
      Copy::copy(
          vector(v_ + source_block * params_.v_block_stride + source_row * params_.v_row_stride),
          *reinterpret_cast<cute::uint128_t*>(stage + Tile::kBytes + target), exists);
    }
  }

 private:
  CUTLASS_DEVICE cute::uint128_t const& vector(Cache const* row) const {
    return reinterpret_cast<cute::uint128_t const*>(row)[chunk_];
  }

  PagedAttentionParams const& params_;
  AttentionPiece const& piece_;
  Cache const* k_;
  Cache const* v_;
  int row_;
  int chunk_;
};

// ---- The rows of a warp -------------------------------------------------------------------------

// Which packed rows of a piece the lanes of a warp have.
struct WarpRows {
  AttentionPiece const& piece;
  int first;
  int lane;

  CUTLASS_DEVICE int packed(int half) const { return first + 8 * half + lane / 4; }
  CUTLASS_DEVICE bool exists(int half) const { return packed(half) < piece.packed_rows; }
};

// The masks of rows that are nodes of a tree; without a tree nothing of them is set.
struct TreeMask {
  PagedAttentionParams const& params;
  WarpRows const& rows;

  CUTLASS_DEVICE int key_end() const { return rows.piece.segment.key_end; }
  CUTLASS_DEVICE uint64_t bits(int half) const {
    if (params.tree_mask == nullptr || !rows.exists(half)) {
      return 0;
    }
    return uint64_t(params.tree_mask[rows.piece.row(rows.packed(half))]);
  }
};

// The queries of a warp's rows, as fragments, and what of the keys they see.
template <class Config>
struct QueryRows {
  using Tile = typename Config::Tile;
  using Element = typename Config::Element;

  uint32_t q[Tile::kSteps][4];
  float scale[2];  // of the scores, with log2(e)
  VisibleKeys visible;

  CUTLASS_DEVICE QueryRows(PagedAttentionParams const& params, WarpRows const& rows) {
    constexpr float kLog2E = 1.4426950408889634f;
    float scores_scale = params.softmax_scale * kLog2E;
    if constexpr (Tile::kIsFp8) {
      scores_scale *= *params.k_scale * ToHalf<typename Tile::Cache>::kScale;
    }
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      scale[half] = scores_scale;
      load(params, rows, half);
      if constexpr (Config::kConvertsQuery) {
        scale[half] *= to_half(half);
      }
      if (rows.exists(half)) {
        set_visible(params, rows.piece, rows.piece.row(rows.packed(half)), half);
      }
    }
  }

 private:
  CUTLASS_DEVICE void load(PagedAttentionParams const& params, WarpRows const& rows, int half) {
    int const packed = rows.exists(half) ? rows.packed(half) : 0;
    auto const* const row =
        static_cast<Element const*>(params.q) +
        (int64_t(rows.piece.row(packed)) * params.num_heads + rows.piece.query_head(packed)) *
            Config::kHeadDim;
    int const quad = rows.lane % 4;
    CUTLASS_PRAGMA_UNROLL
    for (int step = 0; step < Tile::kSteps; ++step) {
      uint2 values = {0, 0};
      if (rows.exists(half)) {
        if constexpr (Tile::kIsFp8) {
          values = reinterpret_cast<uint2 const*>(row + 16 * step)[quad];
        } else {
          auto const* const pairs = reinterpret_cast<uint32_t const*>(row + 16 * step);
          values = {pairs[quad], pairs[quad + 4]};
        }
      }
      q[step][half] = values.x;
      q[step][2 + half] = values.y;
    }
  }

  // bfloat16 to float16, after division by the power of two that returns; the largest of the row
  // is then from 1 to 4.
  CUTLASS_DEVICE float to_half(int half) {
    float largest = 0.0f;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < 2 * Tile::kSteps; ++i) {
      uint32_t const pair = q[i / 2][half + i % 2 * 2];
      largest = fmaxf(largest, fmaxf(fabsf(__uint_as_float(pair << 16)),
                                     fabsf(__uint_as_float(pair & 0xffff0000u))));
    }
    int const exponent = min(max(__float_as_int(quad_max(largest)) >> 23, 1), 253);
    float const inverse = __int_as_float((254 - exponent) << 23);
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < 2 * Tile::kSteps; ++i) {
      uint32_t& pair = q[i / 2][half + i % 2 * 2];
      pair = pack<cutlass::half_t>(__uint_as_float(pair << 16) * inverse,
                                   __uint_as_float(pair & 0xffff0000u) * inverse);
    }
    return __int_as_float(exponent << 23);
  }

  CUTLASS_DEVICE void set_visible(PagedAttentionParams const& params, AttentionPiece const& piece,
                                  int row, int half) {
    AttentionSegment const& segment = piece.segment;
    int const position = clamp_position(params.positions[row]);
    int const oldest = params.window == 0 ? 0 : position - params.window + 1;
    visible.begin[half] = max(oldest, segment.key_begin);
    visible.end[half] = min(position + 1, segment.key_end);
    if (params.tree_mask != nullptr) {
      int const first_new = clamp_position(params.positions[piece.row_begin]);
      visible.end[half] = min(max(first_new, 0), segment.key_end);
    }
  }
};

}  // namespace p_eagle
