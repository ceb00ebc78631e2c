// Limits of the simulated device, an H100 where settings.h does not say otherwise.
#pragma once

#include <cstddef>

namespace hostsim {

inline constexpr int kMaxThreadsPerBlock = 1024;
inline constexpr int kMaxBlockZ = 64;
inline constexpr int kMaxGridX = 2147483647;
inline constexpr int kMaxGridYZ = 65535;
inline constexpr int kMaxThreadsPerSm = 2048;
inline constexpr int kMaxBlocksPerSm = 32;
inline constexpr int kRegistersPerSm = 65536;
inline constexpr int kSharedPerSm = 228 * 1024;
inline constexpr int kReservedSharedPerBlock = 1024;
// What a block may have of shared memory without cudaFuncSetAttribute; with it, see memory.h.
inline constexpr int kDefaultSharedPerBlock = 48 * 1024;
inline constexpr int kPortableClusterBlocks = 8;
inline constexpr int kL2Bytes = 50 * 1024 * 1024;
inline constexpr size_t kGlobalBytes = size_t(80) << 30;

}  // namespace hostsim
