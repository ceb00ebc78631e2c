// Divides the attention of a pass among thread blocks, once for all layers. One thread block does
// it, as a kernel of its own or at the end of one that computes the rows' layout.
//
// Every segment (attention_layout.h) gets a place in one line of key tiles, segment after segment,
// in each all heads; block i of the attention takes tiles_per_block of them. So all blocks read the
// same number of keys however ragged the requests are, at most two pieces of a block are partial,
// and the workspace does not grow with the batch. The price is that where a request is cut depends
// on the batch. Cuts that hang on the request alone would need partial results of every request at
// its longest, and many blocks would write them where one could have gone on.
#pragma once

#include <cutlass/cutlass.h>

#include <cstdint>

#include "common/arrival.cuh"
#include "common/attention_layout.h"
#include "common/scan.cuh"
#include "ops.h"

namespace p_eagle {

// The rows of a request; whatever row_start holds, they are rows of the buffers.
struct RequestRows {
  int begin;
  int count;

  CUTLASS_DEVICE RequestRows(int32_t const* row_start, int request, int num_rows)
      : begin(min(max(row_start[request], 0), num_rows)),
        count(max(min(row_start[request + 1], num_rows) - begin, 0)) {}
};

CUTLASS_DEVICE int clamp_position(int64_t position) {
  int64_t const limit = kAttentionMaxKeys;
  return int(position < -limit ? -limit : position > limit ? limit : position);
}

// The number of elements of an ascending sequence that are at most `value`.
template <class At>
CUTLASS_DEVICE int count_at_most(int size, int64_t value, At const& at) {
  int low = 0;
  int high = size;
  while (low < high) {
    int const middle = (low + high) / 2;
    if (at(middle) <= value) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <int kThreads>
struct AttentionPlanner {
  using Scan = BlockScan<kThreads>;
  using SharedStorage = typename Scan::SharedStorage;

  // Writes the whole of `work`. All threads of a block call it, once the inputs are there.
  CUTLASS_DEVICE static void plan(PlanAttentionParams const& in, SharedStorage& shared,
                                  int thread) {
    AttentionWorkLayout const layout{in.num_rows, in.num_requests, in.group};
    int const max_segments = int(layout.max_segments());
    auto* const header = reinterpret_cast<AttentionWorkHeader*>(in.work);
    auto* const segments = reinterpret_cast<AttentionSegment*>(in.work + layout.segments());
    int32_t* const request_segment = in.work + layout.request_segments();
    int32_t* const first_segment = in.work + layout.first_segments();

    int64_t all_segments = 0;
    for (int base = 0; base < in.num_requests; base += kThreads) {
      int const request = base + thread;
      int row_tiles = 0;
      if (request < in.num_requests) {
        RequestRows const rows(in.row_start, request, in.num_rows);
        row_tiles = ceil_div(rows.count * in.group, kAttentionTileRows);
      }
      auto const sums = Scan::sum(shared, row_tiles, thread);
      int64_t const first = all_segments + sums.before;
      if (request < in.num_requests) {
        request_segment[request] = int(first < max_segments ? first : max_segments);
      }
      all_segments += sums.total;
      __syncthreads();  // request_segment is written, the sums have been read
    }
    int const num_segments = int(all_segments < max_segments ? all_segments : max_segments);

    int num_tiles = 0;
    for (int base = 0; base < max_segments; base += kThreads) {
      int const index = base + thread;
      AttentionSegment segment{};
      if (index < num_segments) {
        int const request =
            count_at_most(in.num_requests, index, [&](int i) { return request_segment[i]; }) - 1;
        segment = make_segment(in, request, index - request_segment[request]);
      }
      auto const sums = Scan::sum(shared, int64_t(segment.num_tiles) * in.num_kv_heads, thread);
      if (index < max_segments) {
        segment.line_start = index < num_segments ? num_tiles + int(sums.before) : 0;
        segments[index] = segment;
      }
      num_tiles += int(sums.total);
      __syncthreads();  // the segments are written, the sums have been read
    }

    int const tiles_per_block = max(ceil_div(num_tiles, in.num_blocks), kAttentionMinTiles);
    for (int block = thread; block < in.num_blocks; block += kThreads) {
      int64_t const place = int64_t(block) * tiles_per_block;
      int const begun =
          count_at_most(num_segments, place, [&](int i) { return segments[i].line_start; });
      first_segment[block] = place < num_tiles ? begun - 1 : num_segments;
    }
    if (thread == 0) {
      *header = {num_segments, num_tiles, tiles_per_block, 0, {}};
    }
  }

  // The same at the end of a kernel whose blocks have written the inputs: the last of them to come
  // here does it. `is_last` is in shared memory.
  CUTLASS_DEVICE static void plan_by_last_block(PlanAttentionParams const& in,
                                                SharedStorage& shared, bool& is_last, int thread) {
    __syncthreads();  // the block's part is written, and what is shared has been read
    if (thread == 0) {
      auto* const header = reinterpret_cast<AttentionWorkHeader*>(in.work);
      is_last = arrives_last(&header->arrivals, gridDim.x);
    }
    __syncthreads();  // is_last is known
    if (is_last) {
      plan(in, shared, thread);
    }
  }

 private:
  CUTLASS_DEVICE static int ceil_div(int a, int b) { return a / b + (a % b != 0); }

  CUTLASS_DEVICE static AttentionSegment make_segment(PlanAttentionParams const& in, int request,
                                                      int row_tile) {
    RequestRows const rows(in.row_start, request, in.num_rows);
    int const first_row = row_tile * kAttentionTileRows / in.group;
    int const last_row = min(((row_tile + 1) * kAttentionTileRows - 1) / in.group, rows.count - 1);
    int const oldest = clamp_position(in.positions[rows.begin + (in.is_tree ? 0 : first_row)]);
    int const newest = in.is_tree ? oldest + min(rows.count, kAttentionTreeRows) - 1
                                  : clamp_position(in.positions[rows.begin + last_row]);
    int const length = min(max(in.seq_lens[request], 0), in.max_keys);
    int const key_end = min(max(newest + 1, 0), length);
    int const key_begin = in.window == 0 ? 0 : min(max(oldest - in.window + 1, 0), key_end);
    int const first_tile = key_begin / kAttentionTileKeys;
    int const num_tiles = max(ceil_div(key_end, kAttentionTileKeys) - first_tile, 1);
    return {request, row_tile, first_tile, num_tiles, 0, key_begin, key_end, 0};
  }
};

}  // namespace p_eagle
