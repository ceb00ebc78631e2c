// The online softmax of 16 rows in one warp, with keys and values as KeyValueTile has them. A lane
// holds elements of two rows, lane / 4 and lane / 4 + 8; the four lanes of a quad share them.
//
// Maxima are those of scores times the scale and log2(e), so a weight is exp2 of one fused
// multiply-add. Sums stay a lane's own until `finish`.
#pragma once

#include <cutlass/cutlass.h>

#include <climits>
#include <cstdint>

#include "common/attention_tiles.cuh"

namespace p_eagle {

inline constexpr unsigned kWholeWarp = 0xffffffffu;

CUTLASS_DEVICE float negative_infinity() { return __int_as_float(0xff800000); }

CUTLASS_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What scores are measured from: of a row that has seen nothing, not -inf, of which the difference
// to another is NaN.
CUTLASS_DEVICE float softmax_base(float maximum) {
  return maximum == negative_infinity() ? 0.0f : maximum;
}

CUTLASS_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kWholeWarp, x, 2));
}

CUTLASS_DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(kWholeWarp, x, 1);
  return x + __shfl_xor_sync(kWholeWarp, x, 2);
}

// The keys that the two rows of a lane see: those from `begin` to before `end`, and of a tree also
// those from `end` on whose bits are set.
struct VisibleKeys {
  int begin[2] = {0, 0};
  int end[2] = {INT_MAX, INT_MAX};  // rows that do not exist see all, and nobody looks at them

  // Whether both rows see all of `count` keys from `first` on.
  CUTLASS_DEVICE bool all(int first, int count) const {
    return first >= max(begin[0], begin[1]) && first + count <= min(end[0], end[1]);
  }

  // Sets the scores of keys that are not seen to -inf. `tree` says of each row which of the keys
  // from `end` on it sees, and where the keys end; it is asked only here, so that it need not be in
  // registers.
  template <int kKeys, class Tree>
  CUTLASS_DEVICE void apply(float (&scores)[kKeys / 8][4], int first, Tree const& tree,
                            int lane) const {
    int const tree_end = tree.key_end();
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint64_t const bits = tree.bits(half);
      CUTLASS_PRAGMA_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) {
        CUTLASS_PRAGMA_UNROLL
        for (int e = 0; e < 2; ++e) {
          int const key = first + 8 * n + lane % 4 * 2 + e;
          bool const in_range = key >= begin[half] && key < end[half];
          bool const in_tree =
              key >= end[half] && key < tree_end && (bits >> ((key - end[half]) & 63) & 1) != 0;
          if (!in_range && !in_tree) {
            scores[n][2 * half + e] = negative_infinity();
          }
        }
      }
    }
  }
};

template <class Tile_>
struct RowSoftmax {
  using Tile = Tile_;

  float maximum[2] = {negative_infinity(), negative_infinity()};
  float sum[2] = {0.0f, 0.0f};
  float out[2 * Tile::kSteps][4] = {};

  // Takes in kKeys keys from `first_key` of a tile on, whose first key is `tile_key`. `scale` is of
  // each row's scores, with log2(e).
  template <int kKeys, class Tree>
  CUTLASS_DEVICE void add(uint32_t const (&q)[Tile::kSteps][4], float const (&scale)[2],
                          VisibleKeys const& visible, Tree const& tree, char const* k_tile,
                          char const* v_tile, int tile_key, int first_key,
                          typename Tile::Lane const& address, int lane) {
    float scores[kKeys / 8][4];
    Tile::template multiply_keys<kKeys>(scores, q, k_tile, first_key, address);
    if (__any_sync(kWholeWarp, !visible.all(tile_key + first_key, kKeys))) {
      visible.template apply<kKeys>(scores, tile_key + first_key, tree, lane);
    }

    float new_maximum[2];
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      float best = negative_infinity();
      CUTLASS_PRAGMA_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) {
        best = fmaxf(best, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      new_maximum[half] = fmaxf(maximum[half], quad_max(best) * scale[half]);
    }
    if (__any_sync(kWholeWarp, new_maximum[0] > maximum[0] || new_maximum[1] > maximum[1])) {
      rescale(new_maximum);
    }
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      float const base = softmax_base(maximum[half]);
      CUTLASS_PRAGMA_UNROLL
      for (int n = 0; n < kKeys / 8; ++n) {
        CUTLASS_PRAGMA_UNROLL
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          scores[n][e] = exp2_approx(fmaf(scores[n][e], scale[half], -base));
          sum[half] += scores[n][e];
        }
      }
    }
    Tile::template multiply_values<kKeys>(out, scores, v_tile, first_key, address);
  }

  // Makes the sums those of whole rows.
  CUTLASS_DEVICE void finish() {
    sum[0] = quad_sum(sum[0]);
    sum[1] = quad_sum(sum[1]);
  }

  static constexpr int kFloats = 8 * Tile::kSteps + 4;  // of a lane's state

  // To and from kFloats * 32 floats, where another warp takes it up.
  CUTLASS_DEVICE void store(float* memory, int lane) const {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < 8 * Tile::kSteps; ++i) {
      memory[i * kWarpSize + lane] = out[i / 4][i % 4];
    }
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      memory[(8 * Tile::kSteps + half) * kWarpSize + lane] = maximum[half];
      memory[(8 * Tile::kSteps + 2 + half) * kWarpSize + lane] = sum[half];
    }
  }

  // Adds the state of other keys, after `finish` of both.
  CUTLASS_DEVICE void merge(float const* memory, int lane) {
    float other_maximum[2];
    float new_maximum[2];
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      other_maximum[half] = memory[(8 * Tile::kSteps + half) * kWarpSize + lane];
      new_maximum[half] = fmaxf(maximum[half], other_maximum[half]);
    }
    rescale(new_maximum);
    float factor[2];
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      factor[half] = exp2_approx(other_maximum[half] - softmax_base(maximum[half]));
      sum[half] += factor[half] * memory[(8 * Tile::kSteps + 2 + half) * kWarpSize + lane];
    }
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < 8 * Tile::kSteps; ++i) {
      out[i / 4][i % 4] += factor[i % 4 / 2] * memory[i * kWarpSize + lane];
    }
  }

 private:
  CUTLASS_DEVICE void rescale(float const (&new_maximum)[2]) {
    CUTLASS_PRAGMA_UNROLL
    for (int half = 0; half < 2; ++half) {
      float const factor = exp2_approx(maximum[half] - softmax_base(new_maximum[half]));
      maximum[half] = new_maximum[half];
      sum[half] *= factor;
      CUTLASS_PRAGMA_UNROLL
      for (int n = 0; n < 2 * Tile::kSteps; ++n) {
        out[n][2 * half] *= factor;
        out[n][2 * half + 1] *= factor;
      }
    }
  }
};

}  // namespace p_eagle
