#include "tensor_memory.h"

#include <algorithm>
#include <bit>

namespace hostsim {

int TensorMemory::allocate(int num_columns) {
  if (num_columns < kUnit || num_columns > kColumns ||
      !std::has_single_bit(unsigned(num_columns))) {
    fault("tcgen05", "tcgen05.alloc of %d columns, expected a power of two from %d to %d",
          num_columns, kUnit, kColumns);
  }
  if (relinquished_) {
    fault("tcgen05", "tcgen05.alloc after the block's tcgen05.relinquish_alloc_permit");
  }
  int const units = num_columns / kUnit;
  for (int first = 0; first + units <= kUnits; ++first) {
    auto const begin = taken_.begin() + first;
    if (std::none_of(begin, begin + units, [](bool taken) { return taken; })) {
      std::fill_n(begin, units, true);
      size_[size_t(first)] = units;
      return first * kUnit;
    }
  }
  fault("tcgen05", "tcgen05.alloc of %d columns, of which the block has %d already, waits for ever",
        num_columns, allocated());
}

void TensorMemory::deallocate(int column, int num_columns) {
  auto const first = size_t(column / kUnit);
  bool const fits = column >= 0 && column < kColumns && column % kUnit == 0 && num_columns > 0 &&
                    size_[first] * kUnit == num_columns;
  if (!fits) {
    fault("tcgen05", "tcgen05.dealloc of %d columns at %d, which were not allocated so",
          num_columns, column);
  }
  std::fill_n(taken_.begin() + long(first), size_[first], false);
  size_[first] = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    std::fill_n(written_.begin() + lane * kColumns + column, num_columns, false);
  }
}

void TensorMemory::relinquish() { relinquished_ = true; }

int TensorMemory::allocated() const {
  return int(std::count(taken_.begin(), taken_.end(), true)) * kUnit;
}

void TensorMemory::touch(Actor const& actor, int lane, int num_lanes, int column, int num_columns,
                         Access access, char const* what) {
  machine().subject = actor.thread;
  if (lane + num_lanes > kLanes || column + num_columns > kColumns) {
    fault("memory", "%s: lanes %d to %d and columns %d to %d are not all in tensor memory", what,
          lane, lane + num_lanes - 1, column, column + num_columns - 1);
  }
  for (int unit = column / kUnit; unit * kUnit < column + num_columns; ++unit) {
    if (!taken_[size_t(unit)]) {
      fault("memory", "%s: column %d of tensor memory is not allocated", what,
            std::max(unit * kUnit, column));
    }
  }
  for (int row = lane; row < lane + num_lanes; ++row) {
    auto const first = size_t(row * kColumns + column);
    auto const begin = written_.begin() + long(first);
    if (access != Access::kWrite && machine().settings.check_uninitialized &&
        !std::all_of(begin, begin + num_columns, [](bool written) { return written; })) {
      report("uninit",
             "%s reads tensor memory, lane %d from column %d on, which nothing has written", what,
             row, column);
    }
    if (access != Access::kRead) {
      std::fill_n(begin, num_columns, true);
    }
    if (machine().racing) {
      check_races(shadow_, actor, first, size_t(num_columns), access, "tensor memory, cell ", what);
    }
  }
}

std::shared_ptr<TensorMemory> const& share_tensor_memory(Block& block) {
  if (block.tensor_memory == nullptr) {
    block.tensor_memory = std::make_shared<TensorMemory>();
  }
  return block.tensor_memory;
}

void check_tensor_memory_at_exit(Block const& block) {
  if (block.tensor_memory != nullptr && block.tensor_memory->allocated() != 0) {
    report("tcgen05", "block %d has left with %d columns of tensor memory allocated", block.index,
           block.tensor_memory->allocated());
  }
}

}  // namespace hostsim
