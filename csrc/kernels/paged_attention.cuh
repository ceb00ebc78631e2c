// The kernel of paged_attention. For a row r of request b with heads h of KV head g:
//
//   out[r, h] = v_scale * sum_j w_j v[j, g]
//   w         = softmax over j of softmax_scale * k_scale * q[r, h] . k[j, g]
//
// over the keys j that the row sees; `sinks` adds exp(sink[h]) to the softmax's denominator.
//
// Mapping: the heads of a group and a request's rows are packed into tiles of 128 rows, so that a
// decoding request's keys are read once. A block of 8 warps takes an equal share of all key tiles
// (common/attention_work.cuh) in pieces: part of the keys of one tile of rows and one KV head. Of a
// piece each warp takes 16 rows; where there are fewer than 8 times 16, several warps divide the
// keys of a tile among them and merge in shared memory. A piece that is not the whole goes to the
// workspace, and of the blocks that share a tile of rows and a head the last to arrive merges them,
// in the order of their keys: nobody waits, and no result depends on who is last.
// Pipeline: pages come by cp.async, kStages tiles of keys and values at a time, the block table's
// entries a tile ahead of them.
// Numerics: common/attention_softmax.cuh. Weights are rounded to 16 bits. With an FP8 cache products
// are in float16; a bfloat16 q is divided by a power of two per row, so that float16 holds it.
// Safety: pages that do not exist are zeros. The map is trusted to be of the same pass.
// Traffic: keys and values once per tile of rows, 2 D + 4 floats per row and partial piece.
#pragma once

#include "common/arrival.cuh"
#include "kernels/paged_attention_pieces.cuh"

namespace p_eagle {

// ---- The results of a piece ---------------------------------------------------------------------

// Partial results in the workspace. A block has one of a piece that began in an earlier block, and
// one of a piece that goes on in the next.
template <class Config>
struct Partials {
  static constexpr int kHeadDim = Config::kHeadDim;

  int32_t* counters;
  float* floats;

  CUTLASS_DEVICE explicit Partials(PagedAttentionParams const& params)
      : counters(static_cast<int32_t*>(params.workspace)),
        floats(reinterpret_cast<float*>(static_cast<char*>(params.workspace) +
                                        layout(params.num_blocks).partials())) {}

  // Of a block's piece of some rows and head that begin in `first_block`.
  CUTLASS_DEVICE float* of(int block, int first_block) const {
    int const slot = AttentionWorkspaceLayout::kPartialsPerBlock * block + (block == first_block);
    return floats + slot * layout(0).partial_floats();
  }
  CUTLASS_DEVICE static float* values(float* partial, int row) { return partial + row * kHeadDim; }
  CUTLASS_DEVICE static float* maximum(float* partial, int row) {
    return partial + kAttentionTileRows * kHeadDim + row;
  }
  CUTLASS_DEVICE static float* sum(float* partial, int row) {
    return maximum(partial, row) + kAttentionTileRows;
  }

 private:
  CUTLASS_DEVICE static constexpr AttentionWorkspaceLayout layout(int num_blocks) {
    return {num_blocks, kHeadDim};
  }
};

// What a row's sum of weighted values is multiplied with; zero where the row has seen nothing.
template <class Config>
CUTLASS_DEVICE float output_factor(PagedAttentionParams const& params, int query_head,
                                   float maximum, float sum) {
  constexpr float kLog2E = 1.4426950408889634f;
  using Tile = typename Config::Tile;
  float scale = 1.0f;
  if constexpr (Tile::kIsFp8) {
    scale = *params.v_scale * ToHalf<typename Tile::Cache>::kScale;
  }
  if (params.sinks != nullptr && sum > 0.0f) {
    // From the larger of the two, so that neither overflows.
    float const sink = params.sinks[query_head] * kLog2E;
    float const base = fmaxf(maximum, sink);
    float const own = exp2_approx(maximum - base);
    return scale * own / (own * sum + exp2_approx(sink - base));
  }
  return sum > 0.0f ? scale / sum : 0.0f;
}

template <class Config>
CUTLASS_DEVICE typename Config::Element* output_row(PagedAttentionParams const& params,
                                                    AttentionPiece const& piece, int packed) {
  return static_cast<typename Config::Element*>(params.out) +
         (int64_t(piece.row(packed)) * params.num_heads + piece.query_head(packed)) *
             Config::kHeadDim;
}

template <class Config>
CUTLASS_DEVICE void write_output(PagedAttentionParams const& params, AttentionPiece const& piece,
                                 int packed, RowSoftmax<typename Config::Tile> const& softmax,
                                 int half, int lane) {
  float const factor = output_factor<Config>(params, piece.query_head(packed),
                                             softmax.maximum[half], softmax.sum[half]);
  auto* const row = output_row<Config>(params, piece, packed);
  Config::Tile::for_each_pair(softmax.out, half, lane, [&](int column, float x, float y) {
    *reinterpret_cast<uint32_t*>(row + column) =
        pack<typename Config::Element>(x * factor, y * factor);
  });
}

template <class Config>
CUTLASS_DEVICE void write_partial(float* partial, int packed,
                                  RowSoftmax<typename Config::Tile> const& softmax, int half,
                                  int lane) {
  float* const row = Partials<Config>::values(partial, packed);
  Config::Tile::for_each_pair(softmax.out, half, lane, [&](int column, float x, float y) {
    *reinterpret_cast<float2*>(row + column) = {x, y};
  });
  if (lane % 4 == 0) {
    *Partials<Config>::maximum(partial, packed) = softmax.maximum[half];
    *Partials<Config>::sum(partial, packed) = softmax.sum[half];
  }
}

// Merges the pieces of one tile of rows and one head, in the order of their keys. All threads.
template <class Config>
CUTLASS_DEVICE void merge_partials(PagedAttentionParams const& params, AttentionPiece const& piece,
                                   Partials<Config> const& partials, int thread) {
  using P = Partials<Config>;
  constexpr int kVectors = Config::kHeadDim / 4;
  for (int i = thread; i < piece.packed_rows * kVectors; i += Config::kThreads) {
    int const packed = i / kVectors;
    int const column = i % kVectors * 4;
    float maximum = negative_infinity();
    for (int block = piece.first_block; block <= piece.last_block; ++block) {
      maximum = fmaxf(maximum, *P::maximum(partials.of(block, piece.first_block), packed));
    }
    float const base = softmax_base(maximum);
    float sum = 0.0f;
    float4 out = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (int block = piece.first_block; block <= piece.last_block; ++block) {
      float* const partial = partials.of(block, piece.first_block);
      float const factor = exp2_approx(*P::maximum(partial, packed) - base);
      float4 const v = *reinterpret_cast<float4 const*>(P::values(partial, packed) + column);
      sum += factor * *P::sum(partial, packed);
      out.x += factor * v.x;
      out.y += factor * v.y;
      out.z += factor * v.z;
      out.w += factor * v.w;
    }
    float const factor = output_factor<Config>(params, piece.query_head(packed), maximum, sum);
    using Element = typename Config::Element;
    *reinterpret_cast<uint2*>(output_row<Config>(params, piece, packed) + column) = {
        pack<Element>(out.x * factor, out.y * factor),
        pack<Element>(out.z * factor, out.w * factor)};
  }
}

// ---- Kernel -------------------------------------------------------------------------------------

// What the threads of a block share, beside the stages.
struct AttentionShared {
  AttentionPieces pieces;
  PageWindow pages;
  bool is_last;
};

// Runs through the tiles of a piece. Each warp takes kKeys keys at a time, of every tile those of
// its place among the warps that have the same rows.
template <class Config, int kKeys>
CUTLASS_DEVICE void attend(AttentionPiece const& piece, KeyValueLoader<Config> const& loader,
                           PageWindow& pages, QueryRows<Config> const& queries,
                           RowSoftmax<typename Config::Tile>& softmax, TreeMask const& tree,
                           char* stages, bool has_rows, int first_key, int key_stride, int thread) {
  using Tile = typename Config::Tile;
  constexpr int kAhead = Config::kAhead;
  int const lane = thread % kWarpSize;
  typename Tile::Lane const address(lane);
  int stage = 0;
  // Look-ups are a tile ahead of the copies that need them, and another in a register.
  bool const looks_up = thread < PageWindow::kPages;
  int found = looks_up && kAhead + 1 < piece.num_tiles ? loader.find(kAhead + 1, thread) : -1;
  for (int tile = 0; tile < piece.num_tiles; ++tile) {
    cute::cp_async_wait<kAhead - 1>();
    __syncthreads();  // the tile is there, and the one before it has been read
    if (tile + kAhead < piece.num_tiles) {
      int const target = stage == 0 ? kAhead : stage - 1;
      loader.load(tile + kAhead, pages, stages + target * Config::kStageBytes);
    }
    cute::cp_async_fence();
    if (looks_up && tile + kAhead + 1 < piece.num_tiles) {
      pages.at(tile + kAhead + 1, thread) = found;
      if (tile + kAhead + 2 < piece.num_tiles) {
        found = loader.find(tile + kAhead + 2, thread);
      }
    }
    char const* const k_tile = stages + stage * Config::kStageBytes;
    if (has_rows) {
      int const tile_key = piece.first_key() + tile * kAttentionTileKeys;
#pragma unroll 1
      for (int key = first_key; key < kAttentionTileKeys; key += key_stride) {
        softmax.template add<kKeys>(queries.q, queries.scale, queries.visible, tree, k_tile,
                                    k_tile + Tile::kBytes, tile_key, key, address, lane);
      }
    }
    stage = stage + 1 == Config::kStages ? 0 : stage + 1;
  }
  softmax.finish();
}

template <class Config>
CUTLASS_DEVICE void process(PagedAttentionParams const& params, AttentionShared& shared,
                            char* stages, int thread) {
  using Tile = typename Config::Tile;
  AttentionPiece const& piece = shared.pieces.piece;
  int const lane = thread % kWarpSize;
  int const warp = thread / kWarpSize;

  // The first copies, after all their look-ups.
  static_assert(Config::kStages < PageWindow::kTiles);
  KeyValueLoader<Config> const loader(params, piece, thread);
  if (thread < min(Config::kStages, piece.num_tiles) * PageWindow::kPages) {
    int const tile = thread / PageWindow::kPages;
    int const page = thread % PageWindow::kPages;
    shared.pages.at(tile, page) = loader.find(tile, page);
  }
  __syncthreads();  // the pages are known
  for (int tile = 0; tile < Config::kAhead; ++tile) {
    if (tile < piece.num_tiles) {
      loader.load(tile, shared.pages, stages + tile * Config::kStageBytes);
    }
    cute::cp_async_fence();
  }

  // Warps with the same rows are `row_warps` apart.
  int const row_warps = piece.packed_rows > 64 ? 8 : piece.packed_rows > 32 ? 4 : 2;
  int const key_warp = warp / row_warps;
  // Of two blocks on an SM one takes them in reverse: with 5 tiles of rows for 8 warps both would
  // otherwise give one scheduler twice the work of the others.
  bool const in_reverse = Config::kBlocksPerSm > 1 && blockIdx.x >= gridDim.x / 2;
  int const place = warp % row_warps;
  int const first_row = (in_reverse ? row_warps - 1 - place : place) * 16;
  bool const has_rows = first_row < piece.packed_rows;
  WarpRows const rows{piece, first_row, lane};
  QueryRows<Config> const queries(params, rows);
  RowSoftmax<Tile> softmax;
  TreeMask const tree{params, rows};
  if (row_warps == 2) {
    attend<Config, 16>(piece, loader, shared.pages, queries, softmax, tree, stages, has_rows,
                       16 * key_warp, 64, thread);
  } else {
    attend<Config, 32>(piece, loader, shared.pages, queries, softmax, tree, stages, has_rows,
                       32 * key_warp, row_warps == 4 ? 64 : 32, thread);
  }

  // Merge the warps that divided the keys.
  cute::cp_async_wait<0>();
  __syncthreads();  // the tiles have been read
  if (row_warps < Config::kWarps) {
    constexpr int kStateFloats = Config::kWarpStateBytes / int(sizeof(float));
    auto* const states = reinterpret_cast<float*>(stages);
    if (key_warp > 0) {
      softmax.store(states + (warp - row_warps) * kStateFloats, lane);
    }
    __syncthreads();  // the states are written
    if (key_warp == 0) {
      for (int other = warp; other < Config::kWarps - row_warps; other += row_warps) {
        softmax.merge(states + other * kStateFloats, lane);
      }
    }
  }

  Partials<Config> const partials(params);
  CUTLASS_PRAGMA_UNROLL
  for (int half = 0; half < 2; ++half) {
    int const packed = rows.packed(half);
    if (key_warp == 0 && rows.exists(half)) {
      if (piece.is_whole()) {
        write_output<Config>(params, piece, packed, softmax, half, lane);
      } else {
        write_partial<Config>(partials.of(blockIdx.x, piece.first_block), packed, softmax, half,
                              lane);
      }
    }
  }
  if (piece.is_whole()) {
    return;
  }

  // Whoever arrives last merges.
  __syncthreads();  // the partial result is written
  if (thread == 0) {
    int const num_arrivals = piece.last_block - piece.first_block + 1;
    shared.is_last = arrives_last(partials.counters + piece.first_block, num_arrivals);
  }
  __syncthreads();  // is_last is known
  if (shared.is_last) {
    merge_partials<Config>(params, piece, partials, thread);
  }
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    paged_attention_kernel(__grid_constant__ PagedAttentionParams const params) {
  extern __shared__ __align__(128) char attention_stages[];
  __shared__ AttentionShared shared;

  wait_for_previous_kernel();
  let_next_kernel_start();
  int const thread = threadIdx.x;
  if (thread == 0) {
    shared.pieces.start(params);
  }
  __syncthreads();  // the first piece is known
  while (shared.pieces.has_piece) {
    process<Config>(params, shared, attention_stages, thread);
    __syncthreads();  // shared memory has been read
    if (thread == 0) {
      shared.pieces.next(params);
    }
    __syncthreads();  // the next piece is known
  }
}

template <class Config>
cudaError_t launch_paged_attention_with(PagedAttentionParams const& params, cudaStream_t stream) {
  auto* const kernel = &paged_attention_kernel<Config>;
  if (cudaError_t const status = cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Config::kSmemBytes);
      status != cudaSuccess) {
    return status;
  }
  LaunchPlan const plan{.grid = dim3(params.num_blocks),
                        .block = dim3(Config::kThreads),
                        .smem_bytes = Config::kSmemBytes,
                        .stream = stream};
  return launch(kernel, plan, params);
}

}  // namespace p_eagle
