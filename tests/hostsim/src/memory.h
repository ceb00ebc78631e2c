// Every byte a kernel touches comes by here: bounds, initialisation, races, traffic.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "clock.h"

namespace hostsim {

struct Block;
struct Grid;
struct Thread;
struct Execution;

// ---- Shared memory --------------------------------------------------------------------------------

// A 32-bit shared address is (slot + 1) << 24 | offset, where `slot` is the resident block's place in
// one host memory region. So mapa and multicast are arithmetic, and a generic address is shared if
// it lies in that region.
inline constexpr uint32_t kSharedSlotBytes = 1u << 24;
inline constexpr uint32_t kSharedBytes =
    228 * 1024 + 8 * 1024;                     // of a slot, with room for red zones
inline constexpr uint32_t kSharedBase = 1024;  // offset of the first variable
inline constexpr uint32_t kMaxSharedPerBlock = 227 * 1024;
inline constexpr int kMaxSlots = 250;  // resident blocks
inline uint32_t shared_offset(uint32_t address) { return address & (kSharedSlotBytes - 1); }

Block* shared_owner(uint32_t address);  // nullptr if no resident block has this address
uint32_t shared_address_of(Block const& block, uint32_t offset);
uint32_t to_shared(uint64_t generic);  // 0 if not a shared address
uint64_t to_generic(uint32_t shared_address);

void attach_shared(Block& block);  // gives it a slot, poisoned with 0xff
void allocate_shared(Block& block, std::string const& name, uint32_t offset, uint32_t size);
void detach_shared(Block& block);

// ---- Who touches, and how --------------------------------------------------------------------------

enum class AccessKind : uint8_t { kPlain, kAtomic, kAsync, kWarpgroup };

struct Actor {
  Thread* thread = nullptr;  // that issued the access
  AccessKind kind = AccessKind::kPlain;
  uint32_t agent = Agent::kNone;
  uint32_t epoch = 0;
  bool async_proxy = false;  // bulk copies, TMA and wgmma; cp.async belongs to the generic proxy
};

Actor plain_actor(Thread& thread);
Actor atomic_actor(Thread& thread);
// The thread's asynchronous copies, those that it waits for by group and those that complete on an
// mbarrier; `epoch` is ThreadClock::async_issued at the operation.
Actor async_actor(Thread& thread, uint32_t epoch, bool async_proxy);
Actor load_actor(Thread& thread, uint32_t epoch, bool async_proxy);
Actor warpgroup_actor(Thread& thread, uint32_t epoch);

enum class Access : uint8_t { kRead, kWrite, kReadWrite };

// Check an access of `size` bytes, count it, and return where the bytes are. `what` names the
// instruction or the operand in reports. An address that is not the kernel's to touch ends the
// launch. The access itself is left to the caller, now or, for asynchronous operations, later.
//
// touch_shared: `cluster` allows the shared memory of other blocks of the cluster.
char* touch_shared(Actor const& actor, uint32_t address, size_t size, Access access,
                   char const* what, bool cluster = true);
// Generic addresses: shared, local, parameter or global memory.
char* touch(Actor const& actor, uint64_t address, size_t size, Access access, char const* what);

// For bytes that an asynchronous operation reads or writes at its completion, so that "written"
// starts there: touch_*() marks bytes as initialised at once, which is right at issue too, since
// whoever reads them before the wait is reported as a race.

// Reports a read through the non-coherent cache of bytes that the same launch has written. Known only
// with race detection.
void check_non_coherent(Thread const& thread, uint64_t address, size_t size, char const* what);

// ---- Buffers ----------------------------------------------------------------------------------------

struct Shadow;  // last writer and readers of every byte, see race.cpp

struct Buffer {
  std::string name;
  char* data = nullptr;
  size_t size = 0;
  bool read_only = false;
  std::vector<uint8_t> initialized;  // per byte; empty where all of it is
  std::shared_ptr<Shadow> shadow;    // made on first use
};

// Memory that kernels may touch. Registering an address again replaces what was there.
void register_buffer(std::string const& name, void* data, size_t size, bool read_only,
                     bool initialized);
void unregister_buffer(void const* data);
Buffer* find_buffer(uint64_t address);                 // the one that contains it, or nullptr
void mark_initialized(void const* data, size_t size);  // the host wrote there
void forget_global_accesses();  // everything so far happens before everything to come

// ---- Traffic ----------------------------------------------------------------------------------------

inline constexpr int kSectorBytes = 32;

// What one launch moved between a buffer and the SMs.
struct Traffic {
  uint64_t bytes = 0;           // asked for, by all lanes together
  uint64_t sectors = 0;         // 32-byte sectors, counted once per warp instruction
  uint64_t unique_sectors = 0;  // counted once per launch: what a cold L2 must move
};

struct BufferTraffic {
  Traffic read;
  Traffic written;
  std::vector<bool> read_sectors;
  std::vector<bool> written_sectors;
};

// Shared memory, in passes over the 32 banks of 4 bytes.
struct SharedTraffic {
  uint64_t wavefronts = 0;          // that the plain loads, stores and matrix loads took
  uint64_t wavefronts_minimum = 0;  // that they would take without bank conflicts
};

// Called after every instruction: counts what its lanes touched as one request.
void count_requests(Grid& grid);

}  // namespace hostsim
