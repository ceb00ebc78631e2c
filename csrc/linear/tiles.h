// Which tile a linear layer is cut into: one table, looked up at compile time by the kernels and at
// run time by whoever plans a launch. Plain C++, tested on the host for every published shape.
#pragma once

#include <cstddef>
#include <stdexcept>

namespace p_eagle {

// All tiles take the weight 64 columns at a time: 128 bytes of a row in 16 bits, one cache line.
inline constexpr int kBlockColumns = 64;
inline constexpr int kWarpRows = 16;  // rows of the weight that one warp multiplies: M of the MMA

struct LinearTile {
  int rows;          // of the weight, kWarpRows for each warp
  int tokens;        // columns of the product; a launch has more tiles of them where rows are more
  int weight_bytes;  // of one element
  int stages;        // blocks of the weight in shared memory
  int ctas_per_sm;   // of the grid; no correctness depends on how many are resident

  constexpr int threads() const { return rows / kWarpRows * 32; }
  constexpr int stage_bytes() const { return rows * kBlockColumns * weight_bytes; }
  constexpr int partial_floats() const { return rows * tokens; }

  // At most, of one CTA: the stages, two blocks of rows, and what is known of the rows.
  constexpr int shared_bytes() const {
    return stages * stage_bytes() + 2 * tokens * kBlockColumns * 2 + tokens * 64 + 1024;
  }
};

// Chosen so that the blocks in flight cover the latency of memory (26 to 33 KB per SM on Hopper) more
// than twice, and that the CTAs of two kernels fit an SM together: the next kernel's weights are
// underway while this one ends.
inline constexpr LinearTile kLinearTiles[] = {
    {64, 8, 2, 6, 2},   {64, 16, 2, 6, 2},   {64, 32, 2, 5, 2},   // 16-bit weights
    {64, 8, 1, 10, 2},  {64, 16, 1, 10, 2},  {64, 32, 1, 10, 2},  // e4m3
    {128, 8, 2, 6, 1},  {128, 16, 2, 6, 1},  {128, 32, 2, 5, 1},  // heads of 128
    {128, 8, 1, 10, 1}, {128, 16, 1, 10, 1}, {128, 32, 1, 10, 1},
};

inline constexpr int kMaxTileTokens = 32;

// A tile of the kernel of csrc/hopper, for more rows than kMaxTileTokens: two warpgroups multiply 64
// rows of the weight each. CTAs of two kernels fit an SM only where tokens are few. Both operands are
// 16 bits wide, or e4m3; then rows wait in 16 bits until they are quantised.
struct WideTile {
  static constexpr int kRows = 128;       // of the weight
  static constexpr int kConsumers = 256;  // threads that multiply
  static constexpr int kProducers = 128;  // threads that bring what is multiplied
  static constexpr int kRowBytes = 128;   // of a block, of either operand
  static constexpr int kMaxTokens = 256;

  int tokens;
  int weight_bytes;    // of one element
  int stages;          // of blocks of the weight and of the rows, in shared memory
  int kernels_per_sm;  // that fit
  int queue;           // vectors of rows that wait, for each producer

  constexpr int threads() const { return kConsumers + kProducers; }
  constexpr int block_columns() const { return kRowBytes / weight_bytes; }
  constexpr int stage_bytes() const { return kRows * kRowBytes; }  // of the weight
  constexpr int partial_floats() const { return kRows * tokens; }

  // At most, of one CTA: the stages, what is known of the rows, the queue, and the epilogues.
  constexpr int shared_bytes() const {
    return stages * (stage_bytes() + tokens * (kRowBytes + 4)) + tokens * 56 +
           kProducers * queue * 16 + 3 * 1024;
  }
};

inline constexpr WideTile kWideTiles[] = {
    {64, 2, 4, 2, 0},   {128, 2, 6, 1, 0},  {256, 2, 4, 1, 0},  // 16 bits
    {128, 1, 5, 1, 24}, {256, 1, 3, 1, 24},                     // e4m3
};

// The tile for so many rows; for more rows than its tokens there are several tiles of them.
constexpr WideTile wide_tile(int num_rows, int weight_bytes) {
  for (WideTile const& tile : kWideTiles) {
    if (tile.weight_bytes == weight_bytes &&
        (num_rows <= tile.tokens || tile.tokens == WideTile::kMaxTokens)) {
      return tile;
    }
  }
  throw std::invalid_argument("wide_tile: no such tile");
}

// A tile of the kernel of csrc/collectives, for 16-bit weights and many rows: two warpgroups multiply
// 64 rows of the batch each by as many of the weight as the registers hold a product of.
struct CollectiveTile {
  static constexpr int kRows = 128;  // of the batch
  static constexpr int kWeightRows = 256;
  static constexpr int kConsumers = 256;
  static constexpr int kThreads = kConsumers + 128;
  static constexpr int kStages = 4;

  int cluster;  // CTAs that share the weight's blocks, their rows one below the other

  constexpr int partial_floats() const { return kRows * kWeightRows; }
};

// The tile for buffers of so many rows. Two CTAs that share weights read a third less from L2, which
// 9 TB/s would have to come from otherwise to keep the tensor cores busy (predicted); but the second
// has nothing to do where an odd number of row tiles exists, which costs more the fewer there are.
constexpr CollectiveTile collective_tile(int max_rows) { return {max_rows <= 512 ? 1 : 2}; }

// The fewest tokens of a tile that hold so many rows.
constexpr int tile_tokens(int num_rows) { return num_rows <= 8 ? 8 : num_rows <= 16 ? 16 : 32; }

constexpr LinearTile linear_tile(int rows, int tokens, int weight_bytes) {
  for (LinearTile const& tile : kLinearTiles) {
    if (tile.rows == rows && tile.tokens == tokens && tile.weight_bytes == weight_bytes) {
      return tile;
    }
  }
  throw std::invalid_argument("linear_tile: no such tile");
}

}  // namespace p_eagle
