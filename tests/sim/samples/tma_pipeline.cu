// out[s, c] = sum over the rows r of segment s of a[r, c] b[r, c]. A producer warp brings rows by bulk
// copies into a ring of stages, consumer warps accumulate; full and empty mbarriers go between them.
// The result leaves by a bulk store.

#include "ptx.cuh"

namespace {

constexpr int kColumns = 256;
constexpr int kConsumerWarps = 4;
constexpr int kConsumers = kConsumerWarps * kWarpSize;
constexpr int kThreads = kConsumers + kWarpSize;  // the last warp is the producer
constexpr int kColumnsPerThread = kColumns / kConsumers;
constexpr int kStages = 3;
constexpr int kStageRows = 4;
constexpr int kRowBytes = kColumns * int(sizeof(float));

struct __align__(128) Shared {
  float a[kStages][kStageRows][kColumns];
  float b[kStages][kStageRows][kColumns];
  float result[kColumns];
  uint64_t full[kStages];   // the stage holds new rows
  uint64_t empty[kStages];  // all consumer warps have read it
};

struct Params {
  float const* a;            // [rows, kColumns]
  float const* b;            // [rows, kColumns]
  int const* segment_start;  // [segments + 1]
  float* out;                // [segments, kColumns]
};

// A place in the ring, and in which round through it.
struct RingPosition {
  int stage = 0;
  int parity = 0;

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ void produce(Shared& shared, Params const& p, int begin, int end) {
  RingPosition ring;
  for (int row = begin; row < end; row += kStageRows) {
    // A fresh mbarrier counts as having completed the phase before, so the first round passes.
    mbarrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
    int const bytes = min(kStageRows, end - row) * kRowBytes;
    mbarrier_arrive_expect_tx(&shared.full[ring.stage], 2 * bytes);
    bulk_load(shared.a[ring.stage], p.a + int64_t(row) * kColumns, bytes, &shared.full[ring.stage]);
    bulk_load(shared.b[ring.stage], p.b + int64_t(row) * kColumns, bytes, &shared.full[ring.stage]);
    ring.advance();
  }
}

__device__ void consume(Shared& shared, int begin, int end, float (&sums)[kColumnsPerThread]) {
  RingPosition ring;
  for (int row = begin; row < end; row += kStageRows) {
    mbarrier_wait(&shared.full[ring.stage], ring.parity);
    int const rows = min(kStageRows, end - row);
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < kColumnsPerThread; ++i) {
        int const column = threadIdx.x + i * kConsumers;
        sums[i] += shared.a[ring.stage][r][column] * shared.b[ring.stage][r][column];
      }
    }
    __syncwarp();  // all lanes have read
    if (threadIdx.x % kWarpSize == 0) {
      mbarrier_arrive(&shared.empty[ring.stage]);
    }
    ring.advance();
  }
}

__global__ void __launch_bounds__(kThreads) tma_pipeline_kernel(Params const p) {
  extern __shared__ __align__(128) char raw_shared[];
  Shared& shared = *reinterpret_cast<Shared*>(raw_shared);

  int const segment = blockIdx.x;
  int const begin = p.segment_start[segment];
  int const end = p.segment_start[segment + 1];
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&shared.full[stage], 1);
      mbarrier_init(&shared.empty[stage], kConsumerWarps);
    }
    fence_mbarrier_init();
  }
  __syncthreads();  // the mbarriers exist

  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x % kWarpSize == 0) {
      produce(shared, p, begin, end);
    }
    return;
  }
  float sums[kColumnsPerThread] = {};
  consume(shared, begin, end, sums);
  for (int i = 0; i < kColumnsPerThread; ++i) {
    shared.result[threadIdx.x + i * kConsumers] = sums[i];
  }
  fence_proxy_async();  // by the writers, before they meet the thread that stores
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
  if (threadIdx.x == 0) {
    bulk_store(p.out + int64_t(segment) * kColumns, shared.result, kRowBytes);
    bulk_commit();
    bulk_wait();
  }
}

}  // namespace

SAMPLE_LAUNCHER launch_tma_pipeline(float const* a, float const* b, int const* segment_start,
                                    float* out, int segments) {
  Params const params{a, b, segment_start, out};
  tma_pipeline_kernel<<<segments, kThreads, sizeof(Shared)>>>(params);
  return cudaGetLastError();
}
