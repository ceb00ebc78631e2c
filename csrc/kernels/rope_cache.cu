// What follows a product of queries, keys and values that is in memory: for each row r < num_rows,
//
//   q, k    = rotate(rms_norm(h) * norm where the model norms heads, else h; position of r)
//   v       = h
//   q goes to q[r], k and v to slot slots[r] of the paged caches, FP8 ones divided by their scale
//
// Mapping: kLanes threads of a warp for a head, each with the values of its upper half and those of
// its lower half that rotate into each other. All of it is float32, rounded once when it is stored;
// FP8 saturates at the largest finite value. Traffic: each head read once and written once.

#include "common/heads.cuh"
#include "common/launch.h"
#include "common/reduce.cuh"
#include "ops.h"
#include "rows/vector.cuh"

namespace p_eagle {
namespace {

constexpr int kRopeThreads = 128;
constexpr int kMaxHeadDim = 256;

template <class Row_, int kLanes_>
struct RopeConfig {
  using Row = Row_;
  static constexpr int kLanes = kLanes_;
  static constexpr int kBlockHeads = kRopeThreads / kLanes;
  static constexpr int kSteps =  // vectors of a half that a lane holds
      Row::kWidth == 1 ? kMaxHeadDim / 2 / kLanes : 1;
};

template <class Config>
__global__ void __launch_bounds__(kRopeThreads)
    rope_cache_kernel(__grid_constant__ RopeCacheParams const params) {
  using Row = typename Config::Row;
  using Values = typename Row::Values;

  wait_for_previous_kernel();
  let_next_kernel_start();
  int const row = blockIdx.x;
  if (row >= *params.num_rows) {
    return;
  }
  int const num_heads = params.num_heads + 2 * params.num_kv_heads;
  int const head = blockIdx.y * Config::kBlockHeads + threadIdx.x / Config::kLanes;
  int const lane = threadIdx.x % Config::kLanes;
  int const half = params.head_dim / 2;
  int const half_vecs = half / Row::kWidth;

  Values upper[Config::kSteps];
  Values lower[Config::kSteps];
  float sum = 0.0f;
  int64_t const first = (int64_t(row) * num_heads + head) * 2 * half_vecs;
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Config::kSteps; ++i) {
    int const vec = lane + i * Config::kLanes;
    upper[i].clear();
    lower[i].clear();
    if (head < num_heads && vec < half_vecs) {
      upper[i] = Row::to_float(Row::load(params.heads, first + vec));
      lower[i] = Row::to_float(Row::load(params.heads, first + half_vecs + vec));
    }
    CUTLASS_PRAGMA_UNROLL
    for (int j = 0; j < Row::kWidth; ++j) {
      sum += upper[i][j] * upper[i][j] + lower[i][j] * lower[i][j];
    }
  }
  CUTLASS_PRAGMA_UNROLL
  for (int offset = Config::kLanes / 2; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, offset);
  }
  if (head >= num_heads) {
    return;
  }

  bool const is_query = head < params.num_heads;
  bool const is_key = !is_query && head < params.num_heads + params.num_kv_heads;
  void const* const norm = is_query ? params.q_norm : is_key ? params.k_norm : nullptr;
  float const rstd = rsqrtf(sum / float(params.head_dim) + params.eps);
  int64_t const slot = is_query ? 0 : params.slots[row];
  if (slot < 0) {
    return;
  }
  float const* const angles =
      params.rope + rope_row(params.positions[row], params.num_positions) * params.head_dim;
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Config::kSteps; ++i) {
    int const vec = lane + i * Config::kLanes;
    if (vec >= half_vecs) {
      break;
    }
    if (norm) {
      Values const a = Row::to_float(Row::load(norm, vec));
      Values const b = Row::to_float(Row::load(norm, half_vecs + vec));
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < Row::kWidth; ++j) {
        upper[i][j] *= rstd * a[j];
        lower[i][j] *= rstd * b[j];
      }
    }
    if (is_query || is_key) {
      using Angles = cutlass::AlignedArray<float, Row::kWidth, Row::kWidth == 1 ? 4 : 16>;
      auto const cosines = reinterpret_cast<Angles const*>(angles)[vec];
      auto const sines = reinterpret_cast<Angles const*>(angles + half)[vec];
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < Row::kWidth; ++j) {
        float2 const x = rotated({upper[i][j], lower[i][j]}, cosines[j], sines[j]);
        upper[i][j] = x.x;
        lower[i][j] = x.y;
      }
    }
    if (is_query) {
      int64_t const place = (int64_t(row) * params.num_heads + head) * 2 * half_vecs + vec;
      Row::store(params.q, place, Row::rounded(upper[i]));
      Row::store(params.q, place + half_vecs, Row::rounded(lower[i]));
    } else {
      PagedCache const& cache = is_key ? params.k_cache : params.v_cache;
      int const kv_head = head - params.num_heads - (is_key ? 0 : params.num_kv_heads);
      int64_t const place =
          cache_place(cache, slot, params.block_size, kv_head) + vec * Row::kWidth;
      store_to_cache<typename Row::Element>(cache, params.cache_type, place, upper[i]);
      store_to_cache<typename Row::Element>(cache, params.cache_type, place + half, lower[i]);
    }
  }
}

bool is_wide(PagedCache const& cache, CacheType type) {
  int const bytes = kWideVector * (type == CacheType::kElement ? 2 : 1);
  int64_t const strides = cache.block_stride | cache.head_stride | cache.slot_stride;
  return reinterpret_cast<uintptr_t>(cache.data) % bytes == 0 && strides % kWideVector == 0;
}

template <class Row, int kLanes>
cudaError_t launch_rope_with(RopeCacheParams const& params, cudaStream_t stream) {
  using Config = RopeConfig<Row, kLanes>;
  int const num_heads = params.num_heads + 2 * params.num_kv_heads;
  int const blocks = (num_heads + Config::kBlockHeads - 1) / Config::kBlockHeads;
  LaunchPlan const plan{
      .grid = dim3(params.max_rows, blocks), .block = dim3(kRopeThreads), .stream = stream};
  return launch(&rope_cache_kernel<Config>, plan, params);
}

}  // namespace

cudaError_t launch_rope_cache(RopeCacheParams const& params, DType dtype, cudaStream_t stream) {
  if (params.head_dim % 2 != 0 || params.head_dim > kMaxHeadDim) {
    return cudaErrorInvalidValue;
  }
  int const half = params.head_dim / 2;
  bool const wide =
      are_wide(half, {params.heads, params.q_norm, params.k_norm, params.rope, params.q}) &&
      is_wide(params.k_cache, params.cache_type) && is_wide(params.v_cache, params.cache_type);
  return dispatch_rows(dtype, wide, [&]<class Row>() {
    if constexpr (Row::kWidth == 1) {
      return launch_rope_with<Row, kWarpSize>(params, stream);
    } else {
      int const vecs = half / Row::kWidth;
      return vecs <= 4   ? launch_rope_with<Row, 4>(params, stream)
             : vecs <= 8 ? launch_rope_with<Row, 8>(params, stream)
                         : launch_rope_with<Row, 16>(params, stream);
    }
  });
}

}  // namespace p_eagle
