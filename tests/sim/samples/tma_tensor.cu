// y[r, c] = x[r, c] scale[c] in bfloat16. Each block takes several tiles: TMA brings one into shared
// memory in its 128-byte swizzle, threads undo it, and TMA stores a plain tile while the next one comes.
// It clips at the edges of the matrix.

#include "ptx.cuh"
#include "tensor_map.h"

namespace {

constexpr int kBlocks = 2;
constexpr int kThreads = 128;
constexpr int kTileRows = 16;
constexpr int kTileColumns = 64;
constexpr int kRowBytes = kTileColumns * 2;  // as wide as the swizzle
constexpr int kTileBytes = kTileRows * kRowBytes;

// Where TMA's 128-byte swizzle puts a byte of a tile that starts at a multiple of 1024.
__device__ int swizzle_128b(int offset) { return offset ^ (offset >> 7 & 7) << 4; }

__global__ void __launch_bounds__(kThreads)
    tma_tensor_kernel(__grid_constant__ CUtensorMap const x_map,
                      __grid_constant__ CUtensorMap const y_map, float const* scale, int rows,
                      int columns) {
  __shared__ alignas(1024) uint8_t in[kTileBytes];
  __shared__ alignas(1024) uint8_t out[kTileBytes];
  __shared__ uint64_t full;

  int const tiles_across = (columns + kTileColumns - 1) / kTileColumns;
  int const num_tiles = (rows + kTileRows - 1) / kTileRows * tiles_across;
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();  // the mbarrier exists

  int parity = 0;
  for (int tile = blockIdx.x; tile < num_tiles; tile += gridDim.x) {
    int const first_row = tile / tiles_across * kTileRows;
    int const first_column = tile % tiles_across * kTileColumns;
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect_tx(&full, kTileBytes);  // the whole box, also where it is clipped
      tensor_load_2d(in, &x_map, first_column, first_row, &full);
      bulk_wait_read();
    }
    __syncthreads();  // the store of the tile before has read out
    mbarrier_wait(&full, parity);
    parity ^= 1;

    for (int i = threadIdx.x; i < kTileRows * kTileColumns; i += kThreads) {
      int const column = first_column + i % kTileColumns;
      float const factor = column < columns ? scale[column] : 0.0f;
      uint16_t const x = *reinterpret_cast<uint16_t const*>(in + swizzle_128b(i * 2));
      *reinterpret_cast<uint16_t*>(out + i * 2) = to_bf16(from_bf16(x) * factor);
    }
    fence_proxy_async();
    __syncthreads();  // out is complete, and in has been read
    if (threadIdx.x == 0) {
      tensor_store_2d(&y_map, out, first_column, first_row);
      bulk_commit();
    }
  }
  if (threadIdx.x == 0) {
    bulk_wait();
  }
}

}  // namespace

SAMPLE_LAUNCHER launch_tma_tensor(uint16_t const* x, float const* scale, uint16_t* y, int rows,
                                  int columns) {
  CUtensorMap x_map, y_map;
  if (encode_matrix(x_map, x, rows, columns, kTileRows, kTileColumns, CU_TENSOR_MAP_SWIZZLE_128B) !=
          CUDA_SUCCESS ||
      encode_matrix(y_map, y, rows, columns, kTileRows, kTileColumns, CU_TENSOR_MAP_SWIZZLE_NONE) !=
          CUDA_SUCCESS) {
    return cudaErrorInvalidValue;
  }
  tma_tensor_kernel<<<kBlocks, kThreads>>>(x_map, y_map, scale, rows, columns);
  return cudaGetLastError();
}
