// Tensor maps of row-major bfloat16 matrices, for TMA.
#pragma once

#include <cuda.h>

#include <cstdint>

// Boxes of `box_rows` x `box_columns`. What is loaded from outside of the matrix is zero, and what is
// stored there is dropped.
inline CUresult encode_matrix(CUtensorMap& map, void const* matrix, uint64_t rows, uint64_t columns,
                              uint32_t box_rows, uint32_t box_columns, CUtensorMapSwizzle swizzle) {
  cuuint64_t const sizes[] = {columns, rows};
  cuuint64_t const strides[] = {columns * 2};
  cuuint32_t const box[] = {box_columns, box_rows};
  cuuint32_t const element_strides[] = {1, 1};
  return cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
                                const_cast<void*>(matrix), sizes, strides, box, element_strides,
                                CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}
