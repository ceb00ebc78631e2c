// The weight of a linear layer on its way to the tensor cores: global memory, a ring of blocks in
// shared memory, fragments in registers.
//
// A thread group of four (a quad) shares a row. Of the 64 columns of a block, the quad's thread t
// holds columns 16t .. 16t + 15, and MMA step s of four multiplies columns 16t + 4s .. 16t + 4s + 3
// of every t. That is another order of columns than the instruction's own, which does not matter as
// long as the other operand has the same. So both come from shared memory in 16-byte loads without
// bank conflicts, whatever their type.
#pragma once

#include <cutlass/array.h>
#include <cutlass/numeric_types.h>

#include <cstdint>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <type_traits>

#include "common/reduce.cuh"
#include "linear/tiles.h"

namespace p_eagle {

inline constexpr int kVecBytes = 16;
inline constexpr int kSteps = 4;  // MMAs of depth 16 in a block

struct alignas(kVecBytes) Vec16 {
  uint32_t words[4];
};

// Where the 16-byte vector of a row of 128 bytes lies in shared memory, so that a column of vectors
// does not fall on one bank.
CUTLASS_DEVICE int swizzled_vec(int row, int vec) { return row * 8 + (vec ^ (row & 7)); }

// A 16-byte asynchronous copy of memory that is read once, or zeros. It leaves L2 first, before the
// activations and the cache that other kernels read again.
CUTLASS_DEVICE void stream_to_shared(void* shared, void const* global, bool exists,
                                     uint64_t policy) {
  uint32_t const address = cute::cast_smem_ptr_to_uint(shared);
  int const bytes = exists ? kVecBytes : 0;
  asm volatile(
      "cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], %2, %3, %4;\n" ::"r"(address),
      "l"(global), "n"(kVecBytes), "r"(bytes), "l"(policy));
}

CUTLASS_DEVICE uint64_t evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
  return policy;
}

// Four e4m3 values, exactly, as two pairs of Element. Each byte's bits go to their places in the
// wider format, which gives the value but for a power of two, subnormals included.
template <class Element>
CUTLASS_DEVICE void widen_e4m3(uint32_t bytes, uint32_t (&pairs)[2]) {
  constexpr bool kIsBf16 = std::is_same_v<Element, cutlass::bfloat16_t>;
  constexpr int kShift = kIsBf16 ? 4 : 1;  // from the top of the wider format's exponent
  constexpr uint32_t kSign = 0x80008000u;
  constexpr uint32_t kMagnitude = 0x7f007f00u >> kShift;
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < 2; ++i) {
    uint32_t const high = __byte_perm(bytes, 0, i == 0 ? 0x1404 : 0x3424);
    uint32_t const pair = (high & kSign) | ((high >> kShift) & kMagnitude);
    if constexpr (kIsBf16) {
      asm("{.reg .b32 s, z; mov.b32 s, 0x7b807b80; mov.b32 z, 0x80008000;"  // 2^120, -0
          " fma.rn.bf16x2 %0, %1, s, z;}"
          : "=r"(pairs[i])
          : "r"(pair));
    } else {
      asm("{.reg .b32 s; mov.b32 s, 0x5c005c00; mul.rn.f16x2 %0, %1, s;}"  // 2^8
          : "=r"(pairs[i])
          : "r"(pair));
    }
  }
}

template <class Element>
CUTLASS_DEVICE void multiply_add(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  using Mma =
      std::conditional_t<std::is_same_v<Element, cutlass::bfloat16_t>,
                         cute::SM80_16x8x16_F32BF16BF16F32_TN, cute::SM80_16x8x16_F32F16F16F32_TN>;
  Mma::fma(d[0], d[1], d[2], d[3], a[0], a[1], a[2], a[3], b0, b1, d[0], d[1], d[2], d[3]);
}

// One block of the weight in shared memory: kTileRows rows of 64 columns.
template <class Element, bool kIsE4M3, int kTileRows>
struct WeightBlock {
  static constexpr int kElementBytes = kIsE4M3 ? 1 : 2;
  static constexpr int kRowVecs = kBlockColumns * kElementBytes / kVecBytes;  // 4 or 8
  static constexpr int kVecs = kTileRows * kRowVecs;

  Vec16 vecs[kVecs];

  // Rows of 64 bytes need no swizzle: the two that a quarter of a warp reads lie side by side.
  CUTLASS_DEVICE static int vec_index(int row, int vec) {
    return kIsE4M3 ? row * kRowVecs + vec : swizzled_vec(row, vec);
  }

  // Copies the block at `column` of the weight, whose row for each row of the tile, or -1, Rows
  // says. All threads of the CTA take part.
  template <int kThreads, class Rows>
  CUTLASS_DEVICE void load(void const* weight, int columns, int column, Rows const& rows,
                           uint64_t policy) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kVecs / kThreads; ++i) {
      int const vec = threadIdx.x + i * kThreads;
      int const row = rows(vec / kRowVecs);
      int64_t const offset = (int64_t(row < 0 ? 0 : row) * columns + column) * kElementBytes;
      stream_to_shared(&vecs[vec_index(vec / kRowVecs, vec % kRowVecs)],
                       static_cast<char const*>(weight) + offset + vec % kRowVecs * kVecBytes,
                       row >= 0, policy);
    }
  }

  // The fragments of MMA steps 2 * half and 2 * half + 1, for the 16 rows from `first_row` on.
  CUTLASS_DEVICE void fragments(int first_row, int half, int lane, uint32_t (&a)[2][4]) const {
    int const row = first_row + lane / 4;
    int const quad = lane % 4;
    CUTLASS_PRAGMA_UNROLL
    for (int upper = 0; upper < 2; ++upper) {  // row, and row + 8
      if constexpr (kIsE4M3) {
        Vec16 const vec = vecs[vec_index(row + 8 * upper, quad)];
        CUTLASS_PRAGMA_UNROLL
        for (int step = 0; step < 2; ++step) {
          uint32_t pairs[2];
          widen_e4m3<Element>(vec.words[2 * half + step], pairs);
          a[step][upper] = pairs[0];
          a[step][2 + upper] = pairs[1];
        }
      } else {
        Vec16 const vec = vecs[vec_index(row + 8 * upper, 2 * quad + half)];
        CUTLASS_PRAGMA_UNROLL
        for (int step = 0; step < 2; ++step) {
          a[step][upper] = vec.words[2 * step];
          a[step][2 + upper] = vec.words[2 * step + 1];
        }
      }
    }
  }
};

}  // namespace p_eagle
