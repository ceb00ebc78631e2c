// Keys and values of accepted nodes move to where those of a chain would be: of request b
//
//   cache[slots[row_start[b] + d]] = cache[slots[path[b, d]]],  d = 1, 2, ...
//
// Rows of a path ascend from the request's first row, so no row moves up: path[b, d] >= row_start[b] + d.
//
// Mapping: a thread has one vector of a token, of keys or values, at all depths, and so nobody reads
// what another one writes. It takes depths in order, several at a time: all that it reads, then all
// that it writes. A later one reads rows above all that were written.
// Numerics: bytes. Traffic: what moves; of a chain nothing but the path and two slots.
// Garbage: a path ends where it does not ascend or leaves the rows; slots outside of the cache and
// negative ones do not move.

#include <cuda_runtime.h>
#include <cutlass/cutlass.h>

#include <cstdint>

#include "common/launch.h"
#include "common/reduce.cuh"
#include "ops.h"

namespace p_eagle {
namespace {

constexpr int kThreads = 128;
constexpr int kDepthsAtOnce = 4;

// The path of a request as moves of slots: from -1 where nothing moves.
struct SharedStorage {
  int64_t from[kMaxTreeNodes];
  int64_t to[kMaxTreeNodes];
  int num_depths;
};

// How many rows of a path ascend from the request's first; for a whole warp.
CUTLASS_DEVICE int count_path(CompactCacheParams const& params, int32_t const* path, int first) {
  int const lane = threadIdx.x % kWarpSize;
  int count = 0;
#pragma unroll 1
  for (int base = 0; base < params.max_nodes && count == base; base += kWarpSize) {
    int const depth = base + lane;
    bool const is_in_path =
        depth < params.max_nodes && path[depth] < params.num_rows &&
        (depth == 0 ? path[0] == first && first >= 0 : path[depth] > path[depth - 1]);
    unsigned const ends = ~__ballot_sync(0xffffffffu, is_in_path);
    count += ends != 0 ? __ffs(ends) - 1 : kWarpSize;
  }
  return count;
}

CUTLASS_DEVICE void load_moves(CompactCacheParams const& params, int request,
                               SharedStorage& shared) {
  int32_t const* const path = params.path + int64_t(request) * params.max_nodes;
  int const first = params.row_start[request];
  if (threadIdx.x < kWarpSize) {
    int const count = count_path(params, path, first);
    if (threadIdx.x == 0) {
      shared.num_depths = count;
    }
  }
  __syncthreads();
  int64_t const num_slots = int64_t(params.num_cache_blocks) * params.block_size;
  for (int depth = threadIdx.x; depth < shared.num_depths; depth += kThreads) {
    int const row = path[depth];
    int64_t const from = params.slots[row];
    int64_t const to = params.slots[first + depth];
    bool const moves =
        row != first + depth && 0 <= from && from < num_slots && 0 <= to && to < num_slots;
    shared.from[depth] = moves ? from : -1;
    shared.to[depth] = to;
  }
  __syncthreads();
}

template <class Vec>
__global__ void __launch_bounds__(kThreads)
    compact_cache_kernel(__grid_constant__ CompactCacheParams const params) {
  __shared__ SharedStorage shared;
  wait_for_previous_kernel();
  let_next_kernel_start();
  load_moves(params, blockIdx.x, shared);
  int const head_vectors = params.head_bytes / int(sizeof(Vec));
  int const vector = blockIdx.z * kThreads + threadIdx.x;
  if (vector >= params.num_kv_heads * head_vectors) {
    return;
  }
  PagedCache const& cache = blockIdx.y == 0 ? params.k_cache : params.v_cache;
  char* const data = static_cast<char*>(cache.data) + vector / head_vectors * cache.head_stride +
                     vector % head_vectors * int64_t(sizeof(Vec));
  auto const at = [&](int64_t slot) {
    return reinterpret_cast<Vec*>(data + slot / params.block_size * cache.block_stride +
                                  slot % params.block_size * cache.slot_stride);
  };
#pragma unroll 1
  for (int first = 1; first < shared.num_depths; first += kDepthsAtOnce) {
    Vec moved[kDepthsAtOnce];
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kDepthsAtOnce; ++i) {
      int const depth = first + i;
      if (depth < shared.num_depths && shared.from[depth] >= 0) {
        moved[i] = *at(shared.from[depth]);
      }
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kDepthsAtOnce; ++i) {
      int const depth = first + i;
      if (depth < shared.num_depths && shared.from[depth] >= 0) {
        *at(shared.to[depth]) = moved[i];
      }
    }
  }
}

template <class Vec>
cudaError_t launch_with(CompactCacheParams const& params, cudaStream_t stream) {
  int const vectors = params.num_kv_heads * (params.head_bytes / int(sizeof(Vec)));
  LaunchPlan const plan{.grid = dim3(params.num_requests, 2, (vectors + kThreads - 1) / kThreads),
                        .block = dim3(kThreads),
                        .stream = stream};
  return launch(&compact_cache_kernel<Vec>, plan, params);
}

bool is_wide(PagedCache const& cache) {
  uintptr_t const bits = reinterpret_cast<uintptr_t>(cache.data) | uintptr_t(cache.block_stride) |
                         uintptr_t(cache.head_stride) | uintptr_t(cache.slot_stride);
  return bits % sizeof(uint4) == 0;
}

}  // namespace

cudaError_t launch_compact_cache(CompactCacheParams const& params, cudaStream_t stream) {
  bool const is_vector = is_wide(params.k_cache) && is_wide(params.v_cache) &&
                         params.head_bytes % int(sizeof(uint4)) == 0;
  return is_vector ? launch_with<uint4>(params, stream) : launch_with<uint8_t>(params, stream);
}

}  // namespace p_eagle
