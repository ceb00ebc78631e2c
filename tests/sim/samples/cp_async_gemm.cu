// c = a b^T in bfloat16: cp.async into a ring of swizzled stages, ldmatrix, mma.sync, and an epilogue
// that turns fragments into rows through shared memory. Rows of `a` past m read as zeros.

#include "ptx.cuh"

namespace {

constexpr int kThreads = 128;  // 2 x 2 warps, each 16 x 16 of the tile
constexpr int kTileM = 32;
constexpr int kTileN = 32;
constexpr int kTileK = 64;
constexpr int kStages = 3;
constexpr int kChunkElems = 8;         // 16 bytes, what a thread copies at a time
constexpr int kRowBytes = kTileK * 2;  // all 32 banks
constexpr int kChunksPerRow = kTileK / kChunkElems;
constexpr int kRowsPerPass = kThreads / kChunksPerRow;
constexpr int kOutStride = kTileN + 4;  // floats

struct __align__(128) Stage {
  uint8_t a[kTileM * kRowBytes];
  uint8_t b[kTileN * kRowBytes];
};

union Shared {
  Stage stages[kStages];
  float out[kTileM][kOutStride];
};

struct Params {
  uint16_t const* a;  // [m, k]
  uint16_t const* b;  // [n, k]
  uint16_t* c;        // [m, n]
  int m, n, k;
};

// Chunks of a row are permuted by the row, so that ldmatrix reads 8 rows without bank conflicts.
__device__ uint32_t chunk_address(uint8_t const* tile, int row, int chunk) {
  return shared_address(tile) + row * kRowBytes + (chunk ^ row % 8) * 16;
}

__device__ void load_stage(Stage& stage, Params const& p, int m_begin, int n_begin, int k_begin) {
  int const chunk = threadIdx.x % kChunksPerRow;
  int const k = k_begin + chunk * kChunkElems;
  for (int row = threadIdx.x / kChunksPerRow; row < kTileM; row += kRowsPerPass) {
    bool const exists = m_begin + row < p.m;
    int const source_row = exists ? m_begin + row : 0;
    cp_async_16(chunk_address(stage.a, row, chunk), p.a + int64_t(source_row) * p.k + k,
                exists ? 16 : 0);
  }
  for (int row = threadIdx.x / kChunksPerRow; row < kTileN; row += kRowsPerPass) {
    cp_async_16(chunk_address(stage.b, row, chunk), p.b + int64_t(n_begin + row) * p.k + k, 16);
  }
}

// One stage's share of the warp's 16 x 16 of the tile, as two 16 x 8 accumulators.
__device__ void multiply_stage(Stage const& stage, float (&accum)[2][4]) {
  int const lane = threadIdx.x % kWarpSize;
  int const warp = threadIdx.x / kWarpSize;
  int const a_row = warp / 2 * 16 + lane % 16;
  int const b_row = warp % 2 * 16 + lane % 8 + lane / 16 * 8;
  for (int k = 0; k < kTileK / 16; ++k) {
    uint32_t a[4], b[4];
    ldmatrix_x4(a, chunk_address(stage.a, a_row, 2 * k + lane / 16));
    ldmatrix_x4(b, chunk_address(stage.b, b_row, 2 * k + lane / 8 % 2));
    mma_m16n8k16(accum[0], a, b[0], b[1]);
    mma_m16n8k16(accum[1], a, b[2], b[3]);
  }
}

__global__ void __launch_bounds__(kThreads) cp_async_gemm_kernel(Params const p) {
  extern __shared__ __align__(128) char raw_shared[];
  Shared& shared = *reinterpret_cast<Shared*>(raw_shared);

  int const lane = threadIdx.x % kWarpSize;
  int const warp = threadIdx.x / kWarpSize;
  int const m_begin = blockIdx.x * kTileM;
  int const n_begin = blockIdx.y * kTileN;
  int const num_steps = p.k / kTileK;

  for (int step = 0; step < kStages - 1; ++step) {
    if (step < num_steps) {
      load_stage(shared.stages[step], p, m_begin, n_begin, step * kTileK);
    }
    cp_async_commit();  // prologue
  }

  float accum[2][4] = {};
  for (int step = 0; step < num_steps; ++step) {
    cp_async_wait<kStages - 2>();  // this thread's copies of the step
    __syncthreads();  // everybody's copies of the step; and the slot to refill has been read
    int const next = step + kStages - 1;
    if (next < num_steps) {
      load_stage(shared.stages[next % kStages], p, m_begin, n_begin, next * kTileK);
    }
    cp_async_commit();  // also an empty group counts
    multiply_stage(shared.stages[step % kStages], accum);
  }

  // The output takes the place of the stages.
  cp_async_wait<0>();
  __syncthreads();  // stages have been read
  for (int j = 0; j < 2; ++j) {
    for (int i = 0; i < 4; ++i) {
      int const row = warp / 2 * 16 + lane / 4 + i / 2 * 8;
      int const column = warp % 2 * 16 + j * 8 + lane % 4 * 2 + i % 2;
      shared.out[row][column] = accum[j][i];
    }
  }
  __syncthreads();  // out is complete
  for (int i = threadIdx.x; i < kTileM * kTileN; i += kThreads) {
    int const row = i / kTileN;
    int const column = i % kTileN;
    if (m_begin + row < p.m) {
      p.c[int64_t(m_begin + row) * p.n + n_begin + column] = to_bf16(shared.out[row][column]);
    }
  }
}

}  // namespace

SAMPLE_LAUNCHER launch_cp_async_gemm(uint16_t const* a, uint16_t const* b, uint16_t* c, int m,
                                     int n, int k) {
  Params const params{a, b, c, m, n, k};
  dim3 const grid((m + kTileM - 1) / kTileM, n / kTileN);
  cp_async_gemm_kernel<<<grid, kThreads, sizeof(Shared)>>>(params);
  return cudaGetLastError();
}
