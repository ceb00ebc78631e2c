// Tensor memory: what tcgen05 instructions of a block multiply into, 128 lanes by 512 columns of 32
// bits. Addresses have the lane above, the column below.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "machine.h"
#include "race.h"

namespace hostsim {

class TensorMemory {
 public:
  static constexpr int kLanes = 128;
  static constexpr int kColumns = 512;
  static constexpr int kUnit = 32;  // columns are allocated in powers of two of these
  static constexpr int kLanesOfWarp = 32;

  static int lane_of(uint32_t address) { return int(address >> 16); }
  static int column_of(uint32_t address) { return int(address & 0xffff); }

  // The first column of those that are now the block's. There must be as many in one piece: nobody
  // else frees any.
  int allocate(int num_columns);
  void deallocate(int column, int num_columns);
  void relinquish();  // the right to allocate
  int allocated() const;

  // Checks an access of columns of some lanes: allocation, initialisation, races.
  void touch(Actor const& actor, int lane, int num_lanes, int column, int num_columns,
             Access access, char const* what);
  // A cell, which the caller has touched.
  uint32_t& at(int lane, int column) { return cells_[size_t(lane * kColumns + column)]; }

 private:
  static constexpr int kUnits = kColumns / kUnit;

  std::vector<uint32_t> cells_ = std::vector<uint32_t>(kLanes * kColumns, ~0u);
  std::vector<bool> written_ = std::vector<bool>(kLanes * kColumns);
  std::array<int, kUnits> size_{};  // of the allocation that begins at a unit, in units
  std::array<bool, kUnits> taken_{};
  bool relinquished_ = false;
  Shadow shadow_;  // of cells, not of bytes
};

// Made on first use; operations that are not over yet keep it.
std::shared_ptr<TensorMemory> const& share_tensor_memory(Block& block);

// All threads of `block` have left: what it has allocated would never be free again.
void check_tensor_memory_at_exit(Block const& block);

}  // namespace hostsim
