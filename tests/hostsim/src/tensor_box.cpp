#include "tensor_box.h"

#include <algorithm>

namespace hostsim {
namespace {

// Counts through the rows of a box: the second dimension fastest.
class RowCounter {
 public:
  RowCounter(TensorMap const& map, TensorCoordinates const& first) : map_(map), first_(first) {}

  bool is_inside() const {
    for (int i = 1; i < map_.rank; ++i) {
      if (position(i) < 0 || position(i) >= map_.size(i)) {
        return false;
      }
    }
    return true;
  }

  // Of the row's element with first coordinate 0.
  int64_t global_offset() const {
    int64_t offset = 0;
    for (int i = 1; i < map_.rank; ++i) {
      offset += position(i) * int64_t(map_.strides[size_t(i - 1)]);
    }
    return offset;
  }

  void next() {
    for (int i = 1; i < map_.rank && ++step_[size_t(i)] == map_.extent(i); ++i) {
      step_[size_t(i)] = 0;
    }
  }

 private:
  int64_t position(int i) const {
    return int64_t(first_[size_t(i)]) + int64_t(step_[size_t(i)]) * map_.element_stride(i);
  }

  TensorMap const& map_;
  TensorCoordinates const& first_;
  std::array<int, kMaxTensorRank> step_{};
};

}  // namespace

std::vector<BoxPiece> pieces_of_box(TensorMap const& map, TensorCoordinates const& first) {
  int64_t const x = first[0];
  int64_t const begin = std::max<int64_t>(0, -x);
  int64_t const end = std::min<int64_t>(map.box[0], map.size(0) - x);
  std::vector<BoxPiece> pieces;
  if (begin >= end) {
    return pieces;
  }
  auto const element = uint32_t(map.element_bytes());
  uint32_t const rows = map.num_rows();
  RowCounter counter(map, first);
  for (uint32_t row = 0; row < rows; ++row, counter.next()) {
    if (counter.is_inside()) {
      int64_t const offset = counter.global_offset() + (x + begin) * element;
      pieces.push_back({map.address + uint64_t(offset),
                        row * map.row_bytes() + uint32_t(begin) * element,
                        uint32_t(end - begin) * element});
    }
  }
  return pieces;
}

}  // namespace hostsim
