// The weight of a linear layer as TMA brings it: one copy for the 128 rows and 128 bytes of columns
// of a block of a tile, each row where its partner in the epilogue wants it, what is outside of the
// weight as zeros.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "linear/epilogue.cuh"
#include "linear/tiles.h"
#include "ops.h"

namespace p_eagle {

inline constexpr int kWideGroups = WideTile::kRows / 16;

// Columns, rows of half a group, halves, groups, heads.
inline constexpr int kMapRank = 5;

// cuTensorMapEncodeTiled, from a driver that need not be linked.
inline cudaError_t find_tensor_map_encoder(PFN_cuTensorMapEncodeTiled_v12000& encode) {
  constexpr unsigned kVersion = 12000;  // of CUDA
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  cudaError_t const status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                              kVersion, cudaEnableDefault, &found);
  if (status != cudaSuccess) {
    return status;
  }
  encode = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  return found == cudaDriverEntryPointSuccess ? cudaSuccess : cudaErrorNotSupported;
}

// Boxes of 128 bytes and kWideGroups groups, of as many heads as that takes.
inline cudaError_t make_weight_map(CUtensorMap& map, LinearWeight const& weight,
                                   WeightRows const& rows, CUtensorMapDataType type) {
  PFN_cuTensorMapEncodeTiled_v12000 encode = nullptr;
  if (cudaError_t const status = find_tensor_map_encoder(encode); status != cudaSuccess) {
    return status;
  }
  int const element_bytes = type == CU_TENSOR_MAP_DATA_TYPE_UINT8 ? 1 : 2;
  cuuint64_t const row_bytes = cuuint64_t(weight.columns) * element_bytes;
  bool const has_heads = rows.num_heads > 1;
  int const box_groups = has_heads ? rows.num_groups : kWideGroups;
  cuuint64_t const sizes[kMapRank] = {cuuint64_t(weight.columns), 8, 2, cuuint64_t(rows.num_groups),
                                      cuuint64_t(rows.num_heads)};
  cuuint64_t const strides[kMapRank - 1] = {row_bytes * rows.step, row_bytes * rows.half_step,
                                            row_bytes * rows.group_step,
                                            row_bytes * (has_heads ? rows.head_step : 1)};
  cuuint32_t const box[kMapRank] = {cuuint32_t(WideTile::kRowBytes / element_bytes), 8, 2,
                                    cuuint32_t(box_groups), cuuint32_t(kWideGroups / box_groups)};
  cuuint32_t const element_strides[kMapRank] = {1, 1, 1, 1, 1};
  CUresult const result =
      encode(&map, type, kMapRank, const_cast<void*>(weight.data), sizes, strides, box,
             element_strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

// A block of a tile's rows, as swizzled_vec() places them.
struct alignas(1024) WideWeightBlock {
  static constexpr int kBytes = WideTile::kRows * WideTile::kRowBytes;

  Vec16 vecs[kBytes / kVecBytes];

  // Starts to copy the block at `column` of a tile; `full` completes when all is there.
  CUTLASS_DEVICE void load(CUtensorMap const& map, WeightRows const& rows, int tile, int column,
                           uint64_t& full, cute::TMA::CacheHintSm90 hint) {
    bool const has_heads = rows.num_heads > 1;
    int const group = has_heads ? 0 : tile * kWideGroups;
    int const head = has_heads ? tile * (kWideGroups / rows.num_groups) : 0;
    cute::SM90_TMA_LOAD_5D::copy(&map, &full, uint64_t(hint), vecs, column, 0, 0, group, head);
  }
};

}  // namespace p_eagle
