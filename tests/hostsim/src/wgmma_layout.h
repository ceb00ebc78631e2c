// Where wgmma and tcgen05 find A and B in shared memory: the matrix descriptor and the canonical
// layouts of the PTX ISA. Both operands are read in granules of 16 bytes, along K if the operand is
// K-major, else along M or N. "Row" below is a row of A or a column of B.
#pragma once

#include <cstdint>

namespace hostsim {

struct MatrixDescriptor {
  uint32_t start = 0;           // shared memory offsets, in bytes
  uint32_t leading = 0;         // leading dimension byte offset
  uint32_t stride = 0;          // stride dimension byte offset
  uint32_t swizzle_bytes = 16;  // 16: none; 32, 64 or 128: width of the swizzled rows

  // Offset of granule `granule` (0 or 1) of K, of row `row`.
  uint32_t k_major(int row, int granule) const;
  // Offset of the 16 bytes from row 16 / element size x `granule` on, at `k`. Of 16-bit elements.
  uint32_t mn_major(int granule, int k) const;

 private:
  uint32_t swizzled(uint32_t offset) const;
};

// Reads the fields of a descriptor. What wgmma does not define, and a swizzle pattern that does not
// start where its alignment says, are faults; `operand` names it there.
MatrixDescriptor parse_descriptor(uint64_t bits, char const* operand);

// The same for tcgen05, whose descriptors have other fields above the offsets.
MatrixDescriptor parse_tensor_descriptor(uint64_t bits, char const* operand);

}  // namespace hostsim
