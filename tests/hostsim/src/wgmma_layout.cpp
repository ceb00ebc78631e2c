#include "wgmma_layout.h"

#include "report.h"

namespace hostsim {
namespace {

constexpr int kRowsPerCoreMatrix = 8;  // a core matrix is 8 rows of 16 bytes
constexpr uint32_t kGranule = 16;

uint32_t offset_field(uint64_t bits, int position) {
  return uint32_t(bits >> position & 0x3fff) * kGranule;
}

// `constant` are bits above the offsets that must be as they are there.
MatrixDescriptor parse(char const* kind, uint64_t bits, uint64_t fields, uint64_t constant,
                       uint32_t swizzle_bytes, char const* operand) {
  MatrixDescriptor d;
  d.start = offset_field(bits, 0);
  d.leading = offset_field(bits, 16);
  d.stride = offset_field(bits, 32);
  d.swizzle_bytes = swizzle_bytes;
  auto const base_offset = uint32_t(bits >> 49 & 7);
  if ((bits & ~fields) != 0 || (bits >> 46 & 3) != constant >> 46 || swizzle_bytes == 0) {
    fault(kind, "descriptor of %s is 0x%016llx, with bits set outside of its fields", operand,
          static_cast<unsigned long long>(bits));
  }
  if (base_offset != 0) {
    fault(kind, "descriptor of %s: base offset is %u; the emulator knows only 0", operand,
          base_offset);
  }
  if (d.swizzle_bytes > kGranule && d.start / d.swizzle_bytes % kRowsPerCoreMatrix != 0) {
    fault(kind,
          "descriptor of %s: start 0x%x is not in the first row of a %u-byte swizzle pattern, "
          "which begins at a multiple of %u bytes",
          operand, d.start, d.swizzle_bytes, d.swizzle_bytes * kRowsPerCoreMatrix);
  }
  return d;
}

}  // namespace

MatrixDescriptor parse_descriptor(uint64_t bits, char const* operand) {
  static constexpr uint32_t kSwizzles[] = {16, 128, 64, 32};
  constexpr uint64_t kFields = 0xc00e'3fff'3fff'3fff;
  return parse("wgmma", bits, kFields, 0, kSwizzles[bits >> 62], operand);
}

MatrixDescriptor parse_tensor_descriptor(uint64_t bits, char const* operand) {
  static constexpr uint32_t kSwizzles[] = {16, 0, 128, 0, 64, 0, 32, 0};
  constexpr uint64_t kVersion = 1ull << 46;
  constexpr uint64_t kFields = 0xe00e'ffff'3fff'3fff;
  return parse("tcgen05", bits, kFields, kVersion, kSwizzles[bits >> 61], operand);
}

// Swizzling exchanges granules within a row, by the row's number in its pattern of 8 rows; both are
// bits of the address.
uint32_t MatrixDescriptor::swizzled(uint32_t offset) const {
  uint32_t const granules_in_row = swizzle_bytes / kGranule;
  return offset ^ (offset >> 3 & (granules_in_row - 1) * kGranule);
}

uint32_t MatrixDescriptor::k_major(int row, int granule) const {
  auto const group = uint32_t(row / kRowsPerCoreMatrix);
  auto const row_in_group = uint32_t(row % kRowsPerCoreMatrix);
  // Swizzled rows have all of an instruction's K in one piece.
  uint32_t const next_granule = swizzle_bytes == kGranule ? leading : kGranule;
  return swizzled(start + group * stride + row_in_group * swizzle_bytes +
                  uint32_t(granule) * next_granule);
}

uint32_t MatrixDescriptor::mn_major(int granule, int k) const {
  auto const group = uint32_t(k / kRowsPerCoreMatrix);
  auto const k_in_group = uint32_t(k % kRowsPerCoreMatrix);
  if (swizzle_bytes == kGranule) {
    return start + uint32_t(granule) * stride + group * leading + k_in_group * kGranule;
  }
  uint32_t const granules_in_row = swizzle_bytes / kGranule;
  uint32_t const pattern = uint32_t(granule) / granules_in_row;
  uint32_t const granule_in_row = uint32_t(granule) % granules_in_row;
  return swizzled(start + pattern * leading + group * stride + k_in_group * swizzle_bytes +
                  granule_in_row * kGranule);
}

}  // namespace hostsim
