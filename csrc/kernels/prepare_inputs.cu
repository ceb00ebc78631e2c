// The rows of a drafter pass. The target's rows of request b begin at query_start[b]; the first v
// are valid, the others rejected. The request gets n = v > 0 ? v + K - 1 : 0 drafter rows, from
// row_start[b] = (sum of n over the requests before it) on. Row row_start[b] + j, j < n:
//
//   source_row = j < v ? query_start[b] + j : -1
//   token_id   = j < v - 1 ? target_tokens[query_start[b] + j + 1] : j == v - 1 ? next_tokens[b]
//                                                                               : mask_token_id
//   position   = target_positions[query_start[b]] + j =: p
//   slot       = block_table[b, p / block_size] * block_size + p % block_size; -1: there is none
//
// The rows from row_start[B] on hold 0, 0, -1, -1. Further, per request:
//
//   seq_lens[b]       = end of its last row's position, or the first position that has no slot
//   sample_rows[b, k] = row_start[b] + v - 1 + k, k < K, where that row's position is below
//                       seq_lens[b]; otherwise, and for a request without rows, -1
//
// and, where it is wanted, how the attention of these rows is divided: common/attention_work.cuh.
//
// Mapping: what takes time is trips to memory that wait for each other, and these are three:
// counts, positions, block table. No block waits for another, as each sums all counts by itself.
// The first blocks take a request per warp and write what there is per request. Positions of a
// request are consecutive, so the first without a slot follows from its columns of the block table.
// The other blocks take a row per thread. The last block to arrive divides the attention.
// Numerics: integers. Counts are summed in 64 bits, so that none wraps around to a row that exists.
// Garbage: no content of the inputs makes an index leave its tensor. Results are the reference's
// even then, but for seq_lens and sample_rows of requests with rows past R, and for positions that
// overflow.
// Traffic: 28 bytes written and 8 read per row; the counts, which every block reads, come from L2.

#include <cutlass/cutlass.h>
#include <cutlass/fast_math.h>

#include "common/attention_work.cuh"
#include "common/launch.h"
#include "common/scan.cuh"
#include "ops.h"

namespace p_eagle {
namespace {

struct Config {
  static constexpr int kThreads = 256;  // rows of a block; requests of a tile
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr int kColumnsPerLane = 8;

  using Scan = BlockScan<kThreads>;
  using Planner = AttentionPlanner<kThreads>;

  // A tile of requests. A request without rows starts where the next one does.
  struct SharedStorage {
    Scan::SharedStorage scan;
    int64_t row_start[kThreads + 1];
    int first_target_row[kThreads];
    bool is_last;  // to arrive, of all blocks
  };
};

CUTLASS_HOST_DEVICE int ceil_div(int a, int b) { return a / b + (a % b != 0); }

// ---- Counts -------------------------------------------------------------------------------------

// What is known of a request before its positions are.
struct Request {
  int64_t index;      // b
  int64_t row_start;  // its first drafter row
  int64_t num_rows;   // 0, or the valid ones and K - 1 mask rows
  int64_t first_target_row;
};

struct Counts {
  int first_target_row = 0;
  int64_t num_valid = 0;
};

CUTLASS_DEVICE Counts load_counts(PrepareInputsParams const& params, int64_t request) {
  if (request >= params.num_requests) {
    return {};
  }
  int const begin = params.query_start[request];
  int const end = params.query_start[request + 1];
  int const num_target_rows = int(unsigned(end) - unsigned(begin));
  return {begin, int64_t(num_target_rows) - params.num_rejected[request]};
}

CUTLASS_DEVICE int64_t num_rows_of(PrepareInputsParams const& params, Counts const& counts) {
  return counts.num_valid > 0 ? counts.num_valid + params.num_speculative_tokens - 1 : 0;
}

CUTLASS_DEVICE Request request_of_tile(Config::SharedStorage const& shared, int64_t tile, int i) {
  return {.index = tile + i,
          .row_start = shared.row_start[i],
          .num_rows = shared.row_start[i + 1] - shared.row_start[i],
          .first_target_row = shared.first_target_row[i]};
}

// Which of the first `num_requests` of a tile has this row; one of them must.
CUTLASS_DEVICE int find_request(Config::SharedStorage const& shared, int num_requests,
                                int64_t row) {
  int low = 0;
  int high = num_requests;
  while (high - low > 1) {  // row_start[low] <= row < row_start[high]
    int const middle = (low + high) / 2;
    (shared.row_start[middle] <= row ? low : high) = middle;
  }
  return low;
}

// ---- Rows ---------------------------------------------------------------------------------------

CUTLASS_DEVICE int64_t const* element_or_null(int64_t const* tensor, int size, int64_t index) {
  return 0 <= index && index < size ? tensor + index : nullptr;
}

CUTLASS_DEVICE int64_t first_position(PrepareInputsParams const& params, Request const& request) {
  int64_t const* position =
      element_or_null(params.target_positions, params.num_target_rows, request.first_target_row);
  return position != nullptr ? *position : 0;
}

CUTLASS_DEVICE int const* columns_of(PrepareInputsParams const& params, int64_t request) {
  return params.block_table + request * params.max_blocks;
}

// Where a position's keys and values go. A negative position is a very large unsigned one.
CUTLASS_DEVICE int64_t slot_of(PrepareInputsParams const& params, int64_t request,
                               uint64_t position) {
  if (position >= uint64_t(params.max_position)) {
    return -1;
  }
  uint64_t const column = position / uint64_t(params.block_size);
  if (column >= uint64_t(params.max_blocks)) {
    return -1;
  }
  int64_t const block = columns_of(params, request)[column];
  uint64_t const offset = position - column * params.block_size;
  return block >= 0 ? block * params.block_size + int64_t(offset) : -1;
}

CUTLASS_DEVICE void write_row(PrepareInputsParams const& params, int64_t row,
                              Request const& request) {
  int64_t token_id = 0;
  uint64_t position = 0;
  int64_t slot = -1;
  int source_row = -1;
  if (request.num_rows > 0) {
    int64_t const j = row - request.row_start;
    int64_t const last_valid = request.num_rows - params.num_speculative_tokens;
    int64_t const source = request.first_target_row + j;
    // One load for whichever token it is, which does not wait for the position's.
    int64_t const* token =
        j < last_valid ? element_or_null(params.target_tokens, params.num_target_rows, source + 1)
                       : params.next_tokens + request.index;
    bool const is_mask = j > last_valid;
    token_id = is_mask ? params.mask_token_id : token != nullptr ? *token : 0;
    position = uint64_t(first_position(params, request)) + uint64_t(j);
    slot = slot_of(params, request.index, position);
    source_row = is_mask ? -1 : int(source);
  }
  params.token_ids[row] = token_id;
  params.positions[row] = int64_t(position);
  params.slots[row] = slot;
  params.source_row[row] = source_row;
}

// ---- Requests -----------------------------------------------------------------------------------

// The first of the columns [begin, end) without a block, or else `end`; for a whole warp.
CUTLASS_DEVICE uint64_t find_column_without_block(int const* columns, uint64_t begin, uint64_t end,
                                                  int lane) {
  constexpr int kStep = kWarpSize * Config::kColumnsPerLane;
  for (uint64_t base = begin; base < end; base += kStep) {
    int blocks[Config::kColumnsPerLane];  // all loads before the first comparison
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Config::kColumnsPerLane; ++i) {
      uint64_t const column = base + i * kWarpSize + lane;
      blocks[i] = column < end ? columns[column] : 0;
    }
    unsigned first = kStep;
    CUTLASS_PRAGMA_UNROLL
    for (int i = Config::kColumnsPerLane - 1; i >= 0; --i) {
      first = blocks[i] < 0 ? i * kWarpSize + lane : first;
    }
    first = __reduce_min_sync(0xffffffffu, first);
    if (first < kStep) {
      return base + first;
    }
  }
  return end;
}

// Keys end before the first row that has no slot, or attention would read what nobody stored.
CUTLASS_DEVICE int64_t seq_len_of(PrepareInputsParams const& params, Request const& request,
                                  int64_t start, int lane) {
  if (start < 0) {
    return start;
  }
  // Unsigned, where none of these sums and products can overflow.
  uint64_t const begin = start;
  uint64_t const end = cutlass::fast_min<uint64_t>(begin + request.num_rows, params.max_position);
  uint64_t const block_size = params.block_size;
  uint64_t const end_column =
      cutlass::fast_min<uint64_t>((end - 1) / block_size + 1, params.max_blocks);
  uint64_t const column = find_column_without_block(columns_of(params, request.index),
                                                    begin / block_size, end_column, lane);
  // Where all have a block, this is the end of the last row, or that of the table.
  return cutlass::fast_min(end, cutlass::fast_max(begin, column * block_size));
}

CUTLASS_DEVICE void write_request(PrepareInputsParams const& params, Request const& request,
                                  int lane) {
  bool const has_rows = request.num_rows > 0;
  int const K = params.num_speculative_tokens;
  int64_t const start = has_rows ? first_position(params, request) : 0;
  int64_t const seq_len = has_rows ? seq_len_of(params, request, start, lane) : 0;
  int64_t const end = request.row_start + request.num_rows;
  int64_t const end_of_stored = request.row_start + (seq_len - start);
  if (lane == 0) {
    params.row_start[request.index + 1] = int(end);
    params.seq_lens[request.index] = int(seq_len);
  }
  CUTLASS_PRAGMA_NO_UNROLL
  for (int k = lane; k < K; k += kWarpSize) {
    int64_t const row = end - K + k;
    params.sample_rows[request.index * K + k] = has_rows && row < end_of_stored ? int(row) : -1;
  }
}

// ---- Kernel -------------------------------------------------------------------------------------

// At least one, which writes row_start[0].
CUTLASS_HOST_DEVICE int num_request_blocks(PrepareInputsParams const& params) {
  return cutlass::fast_max(1, ceil_div(params.num_requests, Config::kWarps));
}

__global__ void __launch_bounds__(Config::kThreads)
    prepare_inputs_kernel(__grid_constant__ PrepareInputsParams const params) {
  __shared__ Config::SharedStorage shared;

  int const thread = threadIdx.x;
  int const lane = thread % kWarpSize;
  int const row_block = int(blockIdx.x) - num_request_blocks(params);
  bool const is_row_block = row_block >= 0;
  int64_t const row = int64_t(row_block) * Config::kThreads + thread;
  int64_t const warp_request = int64_t(blockIdx.x) * Config::kWarps + thread / kWarpSize;

  wait_for_previous_kernel();
  let_next_kernel_start();

  // Look for the request of this thread's row, or of this warp, in tile after tile.
  Request request{};
  int64_t num_rows_before = 0;
  Counts next = load_counts(params, thread);
  for (int64_t tile = 0; tile < params.num_requests; tile += Config::kThreads) {
    Counts const counts = next;
    next = load_counts(params, tile + Config::kThreads + thread);
    // Its barrier also says that all threads are done with the tile before.
    auto const rows = Config::Scan::sum(shared.scan, num_rows_of(params, counts), thread);
    shared.row_start[thread] = num_rows_before + rows.before;
    shared.first_target_row[thread] = counts.first_target_row;
    num_rows_before += rows.total;
    if (thread == 0) {
      shared.row_start[Config::kThreads] = num_rows_before;
    }
    __syncthreads();
    int const num_in_tile =
        int(cutlass::fast_min<int64_t>(params.num_requests - tile, Config::kThreads));
    if (is_row_block) {
      if (shared.row_start[0] <= row && row < num_rows_before) {
        request = request_of_tile(shared, tile, find_request(shared, num_in_tile, row));
      }
    } else if (tile <= warp_request && warp_request < tile + num_in_tile) {
      request = request_of_tile(shared, tile, int(warp_request - tile));
    }
  }

  if (is_row_block) {
    if (row < params.max_rows) {
      write_row(params, row, request);
    }
  } else {
    if (warp_request < params.num_requests) {
      write_request(params, request, lane);
    }
    if (blockIdx.x == 0 && thread == 0) {
      params.row_start[0] = 0;
    }
  }
  if (params.attention.work != nullptr) {
    Config::Planner::plan_by_last_block(params.attention, shared.scan, shared.is_last, thread);
  }
}

}  // namespace

// ---- Dispatch -----------------------------------------------------------------------------------

cudaError_t launch_prepare_inputs(PrepareInputsParams const& params, cudaStream_t stream) {
  int const num_row_blocks = ceil_div(params.max_rows, Config::kThreads);
  LaunchPlan const plan{.grid = dim3(num_request_blocks(params) + num_row_blocks),
                        .block = dim3(Config::kThreads),
                        .stream = stream};
  return launch(&prepare_inputs_kernel, plan, params);
}

}  // namespace p_eagle
