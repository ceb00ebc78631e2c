// The product of a warpgroup on Hopper's tensor cores, both operands in shared memory: 64 rows of
// the weight by the rows of a batch, in blocks of 128 bytes of columns, the width of the swizzle.
#pragma once

#include <cutlass/numeric_types.h>

#include <cstdint>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/util.hpp>
#include <type_traits>

#include "linear/product.cuh"
#include "linear/weights.cuh"

namespace p_eagle {

// Of the type of both operands.
template <class Operand, int kTokens>
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
template <>
struct WgmmaOf<cutlass::float_e4m3_t, 128> {
  using Type = cute::SM90::GMMA::MMA_64x128x32_F32E4M3E4M3_SS_TN<>;
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

// acc += weight rows^T over a block, or acc = that. Has read both operands when it returns.
template <class Operand, bool kAdds = true, int kTokens>
CUTLASS_DEVICE void multiply_block(Accumulator<kTokens>& acc, Vec16 const* weight,
                                   Vec16 const* rows) {
  using Wgmma = typename WgmmaOf<Operand, kTokens>::Type;
  constexpr int kValues = kTokens / 2;
  float* const values = &acc.values[0][0];
  uint64_t operands[2] = {matrix_descriptor(weight), matrix_descriptor(rows)};
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
    auto const adds =
        kAdds || step > 0 ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero;
    cute::detail::explode(Wgmma::fma, operands, cute::make_int_sequence<2>{}, values,
                          cute::make_int_sequence<kValues>{}, &adds, cute::make_int_sequence<1>{});
    operands[0] += 16 * 2 >> 4;  // 16 columns, or 32 of e4m3, in units of 16 bytes
    operands[1] += 16 * 2 >> 4;
  }
  cute::warpgroup_commit_batch();
  cute::warpgroup_wait<0>();
  fence_values();
}

// acc += (weight rows^T) scales over a block of e4m3, where scales[t] is that of row t. The tensor
// cores keep 13 bits or so of such a sum below its largest term, so it starts anew with each block
// and is added in float32. `num_tokens` exist; of others acc may be anything.
template <int kTokens>
CUTLASS_DEVICE void multiply_scaled_block(Accumulator<kTokens>& acc, Vec16 const* weight,
                                          Vec16 const* rows, float const* scales, int num_tokens) {
  constexpr int kPartTokens = 128;  // more, and the registers do not hold both sums
  CUTLASS_PRAGMA_UNROLL
  for (int first = 0; first < kTokens; first += kPartTokens) {
    if (first < num_tokens) {
      Accumulator<kPartTokens> part;
      multiply_block<cutlass::float_e4m3_t, false>(part, weight, rows + swizzled_vec(first, 0));
      CUTLASS_PRAGMA_UNROLL
      for (int octet = 0; octet < part.kOctets; ++octet) {
        auto const scale =
            *reinterpret_cast<float2 const*>(scales + first + octet * 8 + threadIdx.x % 4 * 2);
        float (&sum)[4] = acc.values[first / 8 + octet];
        float const(&term)[4] = part.values[octet];
        sum[0] += term[0] * scale.x;
        sum[1] += term[1] * scale.y;
        sum[2] += term[2] * scale.x;
        sum[3] += term[3] * scale.y;
      }
    }
  }
}

}  // namespace p_eagle
