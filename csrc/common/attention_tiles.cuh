// Tiles of keys and values for tensor cores: how they lie in shared memory, and the two products of
// attention over them, in mma.sync.m16n8k16 with float32 sums.
//
// FP8 tiles stay FP8 in shared memory and become float16 in registers. Where a fragment then holds
// other columns than the instruction's own order has, the other operand is read, or the result
// written, in the same order:
//   keys    a lane gets 4 neighbours of the head, which are its columns 2q, 2q+1, 2q+8, 2q+9 of a
//           step of 16, so q's fragments hold 4 neighbours, too;
//   values  ldmatrix.trans moves pairs of bytes, so a lane gets an even and an odd column, which go
//           to two products, whose results are the even and the odd columns of 16.
#pragma once

#include <cutlass/numeric_conversion.h>
#include <cutlass/numeric_types.h>

#include <cstdint>
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <cute/swizzle.hpp>
#include <type_traits>

#include "common/attention_layout.h"
#include "common/reduce.cuh"

namespace p_eagle {

template <class Element>
using Mma16x8x16 =
    std::conditional_t<std::is_same_v<Element, cutlass::bfloat16_t>,
                       cute::SM80_16x8x16_F32BF16BF16F32_TN, cute::SM80_16x8x16_F32F16F16F32_TN>;

// c[16x8] += a[16x16] b[16x8]
template <class Element>
CUTLASS_DEVICE void multiply_add(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  Mma16x8x16<Element>::fma(c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2],
                           c[3]);
}

template <class Element>
CUTLASS_DEVICE uint32_t pack(float low, float high) {
  cutlass::Array<float, 2> values;
  values[0] = low;
  values[1] = high;
  auto const packed = cutlass::NumericArrayConverter<Element, float, 2>::convert(values);
  return reinterpret_cast<uint32_t const&>(packed);
}

// ---- FP8 to float16 -----------------------------------------------------------------------------

// Which two bytes of a register become the first pair of float16, the others the second.
enum class BytePairs { kNeighbours, kEvenAndOdd };

template <class Cache>
struct ToHalf {};

template <>
struct ToHalf<cutlass::float_e5m2_t> {
  static constexpr float kScale = 1.0f;  // of what comes out to the true value

  // An e5m2 is the upper byte of a float16.
  template <BytePairs kPairs>
  CUTLASS_DEVICE static void convert(uint32_t bytes, uint32_t& first, uint32_t& second) {
    constexpr bool kSide = kPairs == BytePairs::kNeighbours;
    first = __byte_perm(bytes, 0, kSide ? 0x1404 : 0x2404);
    second = __byte_perm(bytes, 0, kSide ? 0x3424 : 0x3414);
  }
};

template <>
struct ToHalf<cutlass::float_e4m3_t> {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
  static constexpr float kScale = 1.0f;

  template <BytePairs kPairs>
  CUTLASS_DEVICE static void convert(uint32_t bytes, uint32_t& first, uint32_t& second) {
    using Convert = cutlass::NumericArrayConverter<cutlass::half_t, cutlass::float_e4m3_t, 2>;
    if constexpr (kPairs == BytePairs::kEvenAndOdd) {
      bytes = __byte_perm(bytes, 0, 0x3120);
    }
    auto const* const pairs = reinterpret_cast<typename Convert::source_type const*>(&bytes);
    auto const low = Convert::convert(pairs[0]);
    auto const high = Convert::convert(pairs[1]);
    first = reinterpret_cast<uint32_t const&>(low);
    second = reinterpret_cast<uint32_t const&>(high);
  }
#else
  // The bits of an e4m3 in the place of a float16's are the value by 2^-8, subnormal ones included.
  static constexpr float kScale = 256.0f;

  template <BytePairs kPairs>
  CUTLASS_DEVICE static void convert(uint32_t bytes, uint32_t& first, uint32_t& second) {
    ToHalf<cutlass::float_e5m2_t>::convert<kPairs>(bytes, first, second);
    first = (first & 0x7f007f00u) >> 1 | (first & 0x80008000u);
    second = (second & 0x7f007f00u) >> 1 | (second & 0x80008000u);
  }
#endif
};

// ---- A tile in shared memory --------------------------------------------------------------------

// kAttentionTileKeys rows, each of 16-byte chunks that are permuted by the row, so that the eight
// rows that ldmatrix reads at a time are in different banks.
template <class Cache_, int kHeadDim_>
struct KeyValueTile {
  using Cache = Cache_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kIsFp8 = sizeof(Cache) == 1;
  static constexpr int kRowBytes = kHeadDim * int(sizeof(Cache));
  static constexpr int kChunks = kRowBytes / 16;
  static constexpr int kBytes = kAttentionTileKeys * kRowBytes;
  static constexpr int kSteps = kHeadDim / 16;                         // of 16 columns
  using Element = std::conditional_t<kIsFp8, cutlass::half_t, Cache>;  // of the products
  using Swizzle = cute::Swizzle<kRowBytes == 64 ? 2 : 3, 4, kRowBytes == 256 ? 4 : 3>;

  static_assert(kRowBytes == 64 || kRowBytes == 128 || kRowBytes == 256);

  CUTLASS_DEVICE static int offset(int row, int chunk) {
    return Swizzle::apply(row * kRowBytes + chunk * 16);
  }

  // Where a lane reads for ldmatrix x4 of 16 keys and two chunks: matrices 0 and 1 are the keys'
  // halves of the first chunk, 2 and 3 of the second.
  struct Lane {
    int row;
    int chunk_bits;

    CUTLASS_DEVICE explicit Lane(int lane)
        : row(lane % 16 * kRowBytes), chunk_bits((Swizzle::apply(row) ^ row) ^ (lane / 16 * 16)) {}

    CUTLASS_DEVICE cute::uint128_t const& at(char const* tile, int key, int chunk) const {
      return *reinterpret_cast<cute::uint128_t const*>(tile + key * kRowBytes + row +
                                                       (chunk * 16 ^ chunk_bits));
    }
  };

  // scores[16 x kKeys] = q k^T; element e of scores[n] is of row lane / 4 + e / 2 * 8 and key
  // 8 n + lane % 4 * 2 + e % 2.
  template <int kKeys>
  CUTLASS_DEVICE static void multiply_keys(float (&scores)[kKeys / 8][4],
                                           uint32_t const (&q)[kSteps][4], char const* tile,
                                           int first_key, Lane const& lane) {
    CUTLASS_PRAGMA_UNROLL
    for (int n = 0; n < kKeys / 8; ++n) {
      CUTLASS_PRAGMA_UNROLL
      for (int e = 0; e < 4; ++e) {
        scores[n][e] = 0.0f;
      }
    }
    CUTLASS_PRAGMA_UNROLL
    for (int pair = 0; pair < kChunks / 2; ++pair) {
      CUTLASS_PRAGMA_UNROLL
      for (int block = 0; block < kKeys / 16; ++block) {
        uint32_t k[4];
        cute::SM75_U32x4_LDSM_N::copy(lane.at(tile, first_key + 16 * block, 2 * pair), k[0], k[1],
                                      k[2], k[3]);
        if constexpr (kIsFp8) {
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < 4; ++i) {
            uint32_t b0, b1;
            ToHalf<Cache>::template convert<BytePairs::kNeighbours>(k[i], b0, b1);
            multiply_add<Element>(scores[2 * block + i % 2], q[2 * pair + i / 2], b0, b1);
          }
        } else {
          multiply_add<Element>(scores[2 * block], q[pair], k[0], k[2]);
          multiply_add<Element>(scores[2 * block + 1], q[pair], k[1], k[3]);
        }
      }
    }
  }

  // out[16 x kHeadDim] += weights[16 x kKeys] v; `columns_of` says which element is where.
  template <int kKeys>
  CUTLASS_DEVICE static void multiply_values(float (&out)[2 * kSteps][4],
                                             float const (&weights)[kKeys / 8][4], char const* tile,
                                             int first_key, Lane const& lane) {
    CUTLASS_PRAGMA_UNROLL
    for (int block = 0; block < kKeys / 16; ++block) {
      float const(&left)[4] = weights[2 * block];
      float const(&right)[4] = weights[2 * block + 1];
      uint32_t const a[4] = {pack<Element>(left[0], left[1]), pack<Element>(left[2], left[3]),
                             pack<Element>(right[0], right[1]), pack<Element>(right[2], right[3])};
      CUTLASS_PRAGMA_UNROLL
      for (int pair = 0; pair < kChunks / 2; ++pair) {
        uint32_t v[4];
        cute::SM75_U16x8_LDSM_T::copy(lane.at(tile, first_key + 16 * block, 2 * pair), v[0], v[1],
                                      v[2], v[3]);
        if constexpr (kIsFp8) {
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < 2; ++i) {
            uint32_t even[2], odd[2];
            ToHalf<Cache>::template convert<BytePairs::kEvenAndOdd>(v[2 * i], even[0], odd[0]);
            ToHalf<Cache>::template convert<BytePairs::kEvenAndOdd>(v[2 * i + 1], even[1], odd[1]);
            multiply_add<Element>(out[4 * pair + 2 * i], a, even[0], even[1]);
            multiply_add<Element>(out[4 * pair + 2 * i + 1], a, odd[0], odd[1]);
          }
        } else {
          multiply_add<Element>(out[2 * pair], a, v[0], v[1]);
          multiply_add<Element>(out[2 * pair + 1], a, v[2], v[3]);
        }
      }
    }
  }

  // Calls visit(column, x, y) for neighbours of a row, `half` 0: lane / 4, 1: lane / 4 + 8.
  template <class Visit>
  CUTLASS_DEVICE static void for_each_pair(float const (&out)[2 * kSteps][4], int half, int lane,
                                           Visit const& visit) {
    int const quad = lane % 4;
    CUTLASS_PRAGMA_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      float const(&a)[4] = out[2 * step];
      float const(&b)[4] = out[2 * step + 1];
      if constexpr (kIsFp8) {
        visit(16 * step + 4 * quad, a[2 * half], b[2 * half]);
        visit(16 * step + 4 * quad + 2, a[2 * half + 1], b[2 * half + 1]);
      } else {
        visit(16 * step + 2 * quad, a[2 * half], a[2 * half + 1]);
        visit(16 * step + 8 + 2 * quad, b[2 * half], b[2 * half + 1]);
      }
    }
  }
};

}  // namespace p_eagle
