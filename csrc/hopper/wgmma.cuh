// The product of a warpgroup on Hopper's tensor cores, both operands in shared memory: 64 rows of
// the weight by the rows of a batch, in blocks of 64 columns, which are 128 bytes and the width of
// the swizzle.
#pragma once

#include <cutlass/numeric_types.h>

#include <cstdint>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/util.hpp>
#include <type_traits>

#include "linear/product.cuh"
#include "linear/weights.cuh"

namespace p_eagle {

template <class Element, int kTokens>
struct WgmmaOf;

template <>
struct WgmmaOf<cutlass::bfloat16_t, 64> {
  using Type = cute::SM90::GMMA::MMA_64x64x16_F32BF16BF16_SS<cute::SM90::GMMA::Major::K,
                                                             cute::SM90::GMMA::Major::K>;
};
template <>
struct WgmmaOf<cutlass::bfloat16_t, 128> {
  using Type = cute::SM90::GMMA::MMA_64x128x16_F32BF16BF16_SS<cute::SM90::GMMA::Major::K,
                                                              cute::SM90::GMMA::Major::K>;
};
template <>
struct WgmmaOf<cutlass::bfloat16_t, 256> {
  using Type = cute::SM90::GMMA::MMA_64x256x16_F32BF16BF16_SS<cute::SM90::GMMA::Major::K,
                                                              cute::SM90::GMMA::Major::K>;
};
template <>
struct WgmmaOf<cutlass::half_t, 64> {
  using Type = cute::SM90::GMMA::MMA_64x64x16_F32F16F16_SS<cute::SM90::GMMA::Major::K,
                                                           cute::SM90::GMMA::Major::K>;
};
template <>
struct WgmmaOf<cutlass::half_t, 128> {
  using Type = cute::SM90::GMMA::MMA_64x128x16_F32F16F16_SS<cute::SM90::GMMA::Major::K,
                                                            cute::SM90::GMMA::Major::K>;
};
template <>
struct WgmmaOf<cutlass::half_t, 256> {
  using Type = cute::SM90::GMMA::MMA_64x256x16_F32F16F16_SS<cute::SM90::GMMA::Major::K,
                                                            cute::SM90::GMMA::Major::K>;
};

// Of rows of 128 bytes as swizzled_vec() places them. The first one's number is a multiple of
// eight, and the block is aligned to eight rows.
CUTLASS_DEVICE uint64_t matrix_descriptor(Vec16 const* vecs) {
  constexpr uint64_t kSwizzle128B = uint64_t(1) << 62;
  constexpr uint64_t kEightRows = uint64_t(8 * 128 >> 4) << 32;
  constexpr uint64_t kUnused = uint64_t(1) << 16;  // with a swizzle, the other dimension's step
  uint64_t const address = cute::cast_smem_ptr_to_uint(vecs);
  return kSwizzle128B | kEightRows | kUnused | (address & 0x3ffff) >> 4;
}

// acc += weight rows^T over a block. Has read both operands when it returns.
template <class Element, int kTokens>
CUTLASS_DEVICE void multiply_block(Accumulator<kTokens>& acc, Vec16 const* weight,
                                   Vec16 const* rows) {
  using Wgmma = typename WgmmaOf<Element, kTokens>::Type;
  constexpr int kValues = kTokens / 2;
  float* const values = &acc.values[0][0];
  uint64_t operands[2] = {matrix_descriptor(weight), matrix_descriptor(rows)};
  cute::SM90::GMMA::ScaleOut const adds = cute::SM90::GMMA::ScaleOut::One;
  auto const fence_values = [&] {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kValues; ++i) {
      cute::warpgroup_fence_operand(values[i]);
    }
  };

  fence_values();
  cute::warpgroup_arrive();
  CUTLASS_PRAGMA_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    cute::detail::explode(Wgmma::fma, operands, cute::make_int_sequence<2>{}, values,
                          cute::make_int_sequence<kValues>{}, &adds, cute::make_int_sequence<1>{});
    operands[0] += 16 * 2 >> 4;  // 16 columns, in units of 16 bytes
    operands[1] += 16 * 2 >> 4;
  }
  cute::warpgroup_commit_batch();
  cute::warpgroup_wait<0>();
  fence_values();
}

}  // namespace p_eagle
