// The product of a tile: what a thread holds of it, and how several CTAs that have multiplied parts
// of its columns make one of them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/arrival.cuh"
#include "linear/partition.h"
#include "ops.h"

namespace p_eagle {

// What a warp has of a product: 16 rows by kTokens. The quad of lane / 4 = g has rows g and g + 8;
// of eight tokens, its lane t has 2t and 2t + 1: values[octet][0] and [1] of row g, [2] and [3] of
// row g + 8. mma.sync and wgmma both leave it so.
template <int kTokens>
struct Accumulator {
  static constexpr int kOctets = kTokens / 8;

  float values[kOctets][4];

  CUTLASS_DEVICE void clear() {
    CUTLASS_PRAGMA_UNROLL
    for (auto& octet : values) {
      CUTLASS_PRAGMA_UNROLL
      for (float& value : octet) {
        value = 0.0f;
      }
    }
  }
};

// The parts of tiles in the workspace. Config has kTile, kTokens, kThreads, which hold a tile
// together, and sync(), a barrier of those; they are the CTA's first. All calls are collective.
template <class Config>
class TileParts {
 public:
  using Product = Accumulator<Config::kTokens>;

  // Where the partition deals with clusters, each of their CTAs has tiles of its own.
  CUTLASS_DEVICE TileParts(LinearWorkspace const& workspace, LinearPartition const& partition,
                           int cluster = 1)
      : base_(static_cast<char*>(workspace.data)), partition_(partition), cluster_(cluster) {}

  // Leaves the CTA's part of a tile, which has the tile's first unit or only later ones, for
  // whoever arrives last. Returns whether this CTA does. Octets of tokens from `num_octets` on do
  // not exist.
  CUTLASS_DEVICE bool leave(int tile, bool begins_tile, Product const& acc, int num_octets,
                            bool& is_last) const {
    store(begins_tile, acc, 0, num_octets);
    return arrives_last(tile, is_last);
  }

  // The same in steps: stores some octets of the part, of which the tile has `num_octets`;
  template <int kTokens>
  CUTLASS_DEVICE void store(bool begins_tile, Accumulator<kTokens> const& acc, int first_octet,
                            int num_octets) const {
    float4* const part = place(blockIdx.x / cluster_, begins_tile) + first_octet * Config::kThreads;
    CUTLASS_PRAGMA_UNROLL
    for (int octet = 0; octet < Accumulator<kTokens>::kOctets; ++octet) {
      if (first_octet + octet < num_octets) {
        float const(&v)[4] = acc.values[octet];
        part[octet * Config::kThreads] = make_float4(v[0], v[1], v[2], v[3]);
      }
    }
  }

  // and returns whether this CTA is the last to have stored all of its part.
  CUTLASS_DEVICE bool arrives_last(int tile, bool& is_last) const {
    Config::sync();
    if (threadIdx.x == 0) {
      int const first_cta = this->first_cta(tile);
      is_last = p_eagle::arrives_last(reinterpret_cast<int32_t*>(base_) + in_grid(first_cta),
                                      last_cta(tile) - first_cta + 1);
    }
    Config::sync();
    return is_last;
  }

  // The sum of what all CTAs have left of a tile, from an octet on, in the order of columns. Of
  // octets that do not exist it is anything.
  template <int kTokens>
  CUTLASS_DEVICE Accumulator<kTokens> sum(int tile, int first_octet) const {
    Accumulator<kTokens> sum;
    sum.clear();
    int const first_cta = this->first_cta(tile);
    int const last_cta = this->last_cta(tile);
#pragma unroll 1
    for (int cta = first_cta; cta <= last_cta; ++cta) {
      float4 const* const parts = place(cta, cta == first_cta) + first_octet * Config::kThreads;
      CUTLASS_PRAGMA_UNROLL
      for (int octet = 0; octet < Accumulator<kTokens>::kOctets; ++octet) {
        float4 const part = __ldcg(parts + octet * Config::kThreads);
        float (&v)[4] = sum.values[octet];
        v[0] += part.x;
        v[1] += part.y;
        v[2] += part.z;
        v[3] += part.w;
      }
    }
    return sum;
  }

 private:
  CUTLASS_DEVICE int first_cta(int tile) const {
    return partition_.cta_of(tile * partition_.tile_blocks);
  }
  CUTLASS_DEVICE int last_cta(int tile) const {
    return partition_.cta_of((tile + 1) * partition_.tile_blocks - 1);
  }

  CUTLASS_DEVICE float4* place(int cta, bool begins_tile) const {
    constexpr LinearWorkspaceLayout kLayout{Config::kTile.partial_floats()};
    return reinterpret_cast<float4*>(base_ + kLayout.partial_offset(in_grid(cta), begins_tile)) +
           threadIdx.x;
  }

  // Of this CTA's place in the cluster.
  CUTLASS_DEVICE int in_grid(int cta) const { return cta * cluster_ + blockIdx.x % cluster_; }

  char* base_;
  LinearPartition const& partition_;
  int cluster_;
};

}  // namespace p_eagle
