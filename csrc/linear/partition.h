// How a linear layer is dealt to CTAs: stream-K. The units of work, blocks of the weight, are
// numbered tile by tile; each CTA takes an equal run of them. So every SM streams as many bytes, and
// which tiles are cut where depends on the shape of the weight and on the grid alone, never on the
// rows: a row gets the same bits whatever else is in the batch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "linear/tiles.h"

#ifdef __CUDACC__
#define P_EAGLE_HOST_DEVICE __host__ __device__
#else
#define P_EAGLE_HOST_DEVICE
#endif

namespace p_eagle {

struct LinearPartition {
  int num_tiles;
  int tile_blocks;  // units in a tile
  int num_ctas;     // that have work
  int granule;      // units that stay together: 1, or tile_blocks where tiles are not to be cut

  // Of a grid of `max_ctas`.
  P_EAGLE_HOST_DEVICE static constexpr LinearPartition make(int num_tiles, int tile_blocks,
                                                            int max_ctas, bool cuts_tiles) {
    int const granule = cuts_tiles ? 1 : tile_blocks;
    int const granules = num_tiles * tile_blocks / granule;
    return {num_tiles, tile_blocks, granules < max_ctas ? granules : max_ctas, granule};
  }

  // The first unit of a CTA, and past the last of the one before. Every CTA below num_ctas has one.
  P_EAGLE_HOST_DEVICE constexpr int first_unit(int cta) const {
    return int(int64_t(cta) * (num_tiles * tile_blocks / granule) / num_ctas) * granule;
  }

  P_EAGLE_HOST_DEVICE constexpr int cta_of(int unit) const {
    int64_t const granules = num_tiles * tile_blocks / granule;
    return int(((unit / granule + 1) * int64_t(num_ctas) - 1) / granules);
  }

  // Whether a tile has units outside of a run of them.
  P_EAGLE_HOST_DEVICE constexpr bool is_cut(int tile, int begin, int end) const {
    return begin > tile * tile_blocks || end < (tile + 1) * tile_blocks;
  }
};

// Tiles of rows of the clusters of csrc/collectives, for the rows that exist.
P_EAGLE_HOST_DEVICE constexpr int collective_row_tiles(int cluster, int num_rows) {
  int const rows = CollectiveTile::kRows * cluster;
  return (num_rows + rows - 1) / rows;
}

// Deals the tiles of the rows that exist to clusters. They are cut unless whole ones keep nine tenths
// of the clusters busy: parts of a tile cost a trip through L2.
P_EAGLE_HOST_DEVICE constexpr LinearPartition collective_partition(int cluster, int num_rows,
                                                                   int weight_rows, int columns,
                                                                   int num_clusters) {
  int const num_tiles =
      collective_row_tiles(cluster, num_rows) *
      ((weight_rows + CollectiveTile::kWeightRows - 1) / CollectiveTile::kWeightRows);
  int const places = (num_tiles + num_clusters - 1) / num_clusters * num_clusters;
  return LinearPartition::make(num_tiles, (columns + kBlockColumns - 1) / kBlockColumns,
                               num_clusters, 10 * num_tiles < 9 * places);
}

// Where the parts of a tile that is cut lie until the last of its CTAs adds them up. A CTA has two
// slots: one for the tile that it continues, one for the tile that it begins. Counters go by the CTA
// that begins the tile, since a CTA begins at most one that is cut. They lie at the same place for
// every kernel, so that no kernel's slots are another's counters.
struct LinearWorkspaceLayout {
  static constexpr int kMaxCtas = 1024;
  static constexpr int64_t kPartialsOffset = kMaxCtas * int64_t(sizeof(int32_t));

  int partial_floats;  // in a slot

  P_EAGLE_HOST_DEVICE constexpr int64_t partial_offset(int cta, bool begins_tile) const {
    return kPartialsOffset +
           (int64_t(cta) * 2 + begins_tile) * partial_floats * int64_t(sizeof(float));
  }
  P_EAGLE_HOST_DEVICE constexpr int64_t size(int num_ctas) const {
    return partial_offset(num_ctas, false);
  }
};

// Most CTAs that a kernel of this tile is launched with.
constexpr int linear_grid(LinearTile const& tile, int num_sms) {
  return std::min(num_sms * tile.ctas_per_sm, LinearWorkspaceLayout::kMaxCtas);
}

constexpr int wide_grid(int num_sms) { return std::min(num_sms, LinearWorkspaceLayout::kMaxCtas); }

// What the workspace of a device of this many SMs must hold, for every tile that there is.
constexpr int64_t linear_workspace_bytes(int num_sms) {
  int64_t bytes = 0;
  for (LinearTile const& tile : kLinearTiles) {
    LinearWorkspaceLayout const layout{tile.partial_floats()};
    bytes = std::max(bytes, layout.size(linear_grid(tile, num_sms)));
  }
  for (WideTile const& tile : kWideTiles) {
    LinearWorkspaceLayout const layout{tile.partial_floats()};
    bytes = std::max(bytes, layout.size(wide_grid(num_sms)));
  }
  LinearWorkspaceLayout const layout{CollectiveTile{}.partial_floats()};
  return std::max(bytes, layout.size(wide_grid(num_sms)));
}

}  // namespace p_eagle
