// The race detector: for every byte, who wrote it last and who has read it since.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "memory.h"

namespace hostsim {

// An access: the grid, the agent in it, and the agent's epoch.
struct Stamp {
  uint32_t agent = Agent::kNone;
  uint32_t epoch = 0;
  uint32_t grid = 0;
  AccessKind kind = AccessKind::kPlain;
  bool operator==(Stamp const&) const = default;
};

struct Shadow {
  // Two readers are remembered. More could be needed to see every race; but races rarely concern one
  // byte alone, and the two come from different warps where possible.
  struct Byte {
    Stamp writer;
    std::array<Stamp, 2> readers;
    bool operator==(Byte const&) const = default;
  };
  static constexpr size_t kPageBytes = 256;
  using Page = std::array<Byte, kPageBytes>;

  Byte& at(size_t offset);

 private:
  std::vector<std::unique_ptr<Page>> pages_;
};

// Compares an access with those remembered, reports what is not ordered, and remembers it. `place`
// names the memory, `offset` is the first byte in it. Of adjacent bytes with the same history the
// first is reported.
void check_races(Shadow& shadow, Actor const& actor, size_t offset, size_t size, Access access,
                 char const* place, char const* what);

// Whether a launch has written any of these bytes.
bool was_written_by(Shadow& shadow, uint32_t grid, size_t offset, size_t size);

}  // namespace hostsim
