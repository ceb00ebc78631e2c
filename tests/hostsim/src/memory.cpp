#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "machine.h"
#include "race.h"
#include "traffic.h"

namespace hostsim {

// ---- Shared memory --------------------------------------------------------------------------------

namespace {

// Of shared_state.
enum : uint8_t { kUnallocated = 0, kUnwritten = 1, kWritten = 2 };

char* arena() {
  // Address space only; pages come as they are touched.
  static char* const base = [] {
    void* const region = mmap(nullptr, size_t(kMaxSlots) * kSharedSlotBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) {
      std::abort();
    }
    return static_cast<char*>(region);
  }();
  return base;
}

std::array<Block*, kMaxSlots> g_slots{};

// What a byte of shared memory is part of, or near to.
std::string describe_shared(Block const& block, uint32_t offset) {
  SharedAllocation const* nearest = nullptr;
  int64_t nearest_distance = 0;
  for (SharedAllocation const& a : block.allocations) {
    int64_t const distance = offset < a.offset             ? int64_t(a.offset) - offset
                             : offset >= a.offset + a.size ? int64_t(offset) - a.offset - a.size + 1
                                                           : 0;
    if (nearest == nullptr || distance < nearest_distance) {
      nearest = &a;
      nearest_distance = distance;
    }
  }
  if (nearest == nullptr) {
    return "the block has no shared memory";
  }
  return "offset " + std::to_string(int64_t(offset) - nearest->offset) + " of '" + nearest->name +
         "' (" + std::to_string(nearest->size) + " bytes)";
}

char const* verb(Access access) {
  return access == Access::kRead ? "read" : access == Access::kWrite ? "write" : "update";
}

void check_shared_state(Block& block, Actor const& actor, uint32_t offset, size_t size,
                        Access access, char const* what) {
  uint8_t* const state = &block.shared_state[offset];
  bool unwritten = false;
  for (size_t i = 0; i < size; ++i) {
    if (state[i] == kUnallocated) {
      fault("memory", "%s: out-of-bounds %s of %zu bytes at %s", what, verb(access), size,
            describe_shared(block, offset + uint32_t(i)).c_str());
    }
    unwritten |= state[i] == kUnwritten;
  }
  if (unwritten && access != Access::kWrite && machine().settings.check_uninitialized) {
    report("uninit", "%s: read of shared memory that was never written, %s", what,
           describe_shared(block, offset).c_str());
  }
  if (access != Access::kRead) {
    std::memset(state, kWritten, size);
  }
  if (&block != &actor.thread->block() && machine().racing) {
    block.remote_users[actor.agent] = actor.epoch;
  }
}

}  // namespace

Block* shared_owner(uint32_t address) {
  uint32_t const slot = address / kSharedSlotBytes;
  return slot >= 1 && slot <= kMaxSlots ? g_slots[slot - 1] : nullptr;
}

uint32_t shared_address_of(Block const& block, uint32_t offset) {
  return uint32_t(block.slot + 1) * kSharedSlotBytes + offset;
}

uint32_t to_shared(uint64_t generic) {
  uint64_t const offset = generic - reinterpret_cast<uint64_t>(arena());
  return offset < uint64_t(kMaxSlots) * kSharedSlotBytes ? uint32_t(offset + kSharedSlotBytes) : 0;
}

uint64_t to_generic(uint32_t shared_address) {
  return reinterpret_cast<uint64_t>(arena()) + shared_address - kSharedSlotBytes;
}

void attach_shared(Block& block) {
  auto const free_slot = std::find(g_slots.begin(), g_slots.end(), nullptr);
  block.slot = int(free_slot - g_slots.begin());
  *free_slot = &block;
  block.shared = arena() + size_t(block.slot) * kSharedSlotBytes;
  std::memset(block.shared, 0xff, kSharedBytes);
  block.shared_state.assign(kSharedBytes, kUnallocated);
}

void allocate_shared(Block& block, std::string const& name, uint32_t offset, uint32_t size) {
  block.allocations.push_back({name, offset, size});
  std::memset(&block.shared_state[offset], kUnwritten, size);
}

void detach_shared(Block& block) { g_slots[size_t(block.slot)] = nullptr; }

char* touch_shared(Actor const& actor, uint32_t address, size_t size, Access access,
                   char const* what, bool cluster) {
  machine().subject = actor.thread;
  Block* const block = shared_owner(address);
  Block& home = actor.thread->block();
  uint32_t const offset = shared_offset(address);
  if (block == nullptr || block->cluster != home.cluster || (block != &home && !cluster)) {
    fault("memory", "%s: shared address 0x%x belongs to no block that the thread may access", what,
          address);
  }
  if (offset + size > kSharedBytes) {
    fault("memory", "%s: out-of-bounds %s of %zu bytes at %s", what, verb(access), size,
          describe_shared(*block, offset).c_str());
  }
  if (block != &home && block->live_threads == 0) {
    fault("cluster", "%s: access to the shared memory of block %d, which has exited", what,
          block->index);
  }
  check_shared_state(*block, actor, offset, size, access, what);
  if (actor.kind == AccessKind::kPlain) {
    count_shared(address, size);
  }
  if (machine().racing) {
    if (block->shadow == nullptr) {
      block->shadow = std::make_shared<Shadow>();
    }
    check_races(*block->shadow, actor, offset, size, access, "shared memory", what);
  }
  return block->shared + offset;
}

// ---- Actors ---------------------------------------------------------------------------------------

Actor plain_actor(Thread& thread) {
  return {&thread, AccessKind::kPlain, Agent::of_thread(thread.block().index, thread.index),
          thread.clock.epoch};
}

Actor atomic_actor(Thread& thread) {
  Actor actor = plain_actor(thread);
  actor.kind = AccessKind::kAtomic;
  return actor;
}

Actor async_actor(Thread& thread, uint32_t epoch, bool async_proxy) {
  return {&thread, AccessKind::kAsync, Agent::of_copies(thread.block().index, thread.index), epoch,
          async_proxy};
}

Actor load_actor(Thread& thread, uint32_t epoch, bool async_proxy) {
  return {&thread, AccessKind::kAsync, Agent::of_loads(thread.block().index, thread.index), epoch,
          async_proxy};
}

Actor warpgroup_actor(Thread& thread, uint32_t epoch) {
  int const warpgroup = thread.index / (4 * kWarpSize);
  return {&thread, AccessKind::kWarpgroup, Agent::of_warpgroup(thread.block().index, warpgroup),
          epoch, true};
}

// ---- Buffers --------------------------------------------------------------------------------------

namespace {

std::map<uint64_t, Buffer> g_buffers;  // by address
Buffer* g_last_found = nullptr;        // by find_buffer; most accesses are to the same one

// How far outside a buffer an address is still called out of its bounds.
constexpr uint64_t kNearBytes = 1 << 20;

Buffer* nearest_buffer(uint64_t address) {
  auto const after = g_buffers.upper_bound(address);
  if (after != g_buffers.begin()) {
    Buffer& before = std::prev(after)->second;
    if (address < std::prev(after)->first + before.size + kNearBytes) {
      return &before;
    }
  }
  return after != g_buffers.end() && address + kNearBytes > after->first ? &after->second : nullptr;
}

[[noreturn]] void fault_out_of_bounds(uint64_t address, size_t size, Access access,
                                      char const* what) {
  if (Buffer const* near = nearest_buffer(address); near != nullptr) {
    fault("memory", "%s: out-of-bounds %s of %zu bytes at offset %lld of '%s' (%zu bytes)", what,
          verb(access), size, (long long)(address - reinterpret_cast<uint64_t>(near->data)),
          near->name.c_str(), near->size);
  }
  fault("memory", "%s: %s of %zu bytes at 0x%llx, which is no memory of the kernel", what,
        verb(access), size, (unsigned long long)address);
}

void check_initialized(Buffer& buffer, size_t offset, size_t size, Access access,
                       char const* what) {
  if (buffer.initialized.empty()) {
    return;
  }
  uint8_t* const state = &buffer.initialized[offset];
  if (access != Access::kRead) {
    std::memset(state, 1, size);
  } else if (machine().settings.check_uninitialized && std::memchr(state, 0, size) != nullptr) {
    report("uninit", "%s: read of %zu bytes at offset %zu of '%s', which nothing has written", what,
           size, offset, buffer.name.c_str());
  }
}

}  // namespace

void register_buffer(std::string const& name, void* data, size_t size, bool read_only,
                     bool initialized) {
  Buffer buffer;
  buffer.name = name;
  buffer.data = static_cast<char*>(data);
  buffer.size = size;
  buffer.read_only = read_only;
  if (!initialized) {
    buffer.initialized.assign(size, 0);
  }
  g_buffers[reinterpret_cast<uint64_t>(data)] = std::move(buffer);
  g_last_found = nullptr;
}

void unregister_buffer(void const* data) {
  g_buffers.erase(reinterpret_cast<uint64_t>(data));
  g_last_found = nullptr;
}

Buffer* find_buffer(uint64_t address) {
  if (g_last_found != nullptr &&
      address - reinterpret_cast<uint64_t>(g_last_found->data) < g_last_found->size) {
    return g_last_found;
  }
  auto const after = g_buffers.upper_bound(address);
  if (after == g_buffers.begin()) {
    return nullptr;
  }
  auto& [start, buffer] = *std::prev(after);
  if (address >= start + buffer.size) {
    return nullptr;
  }
  g_last_found = &buffer;
  return &buffer;
}

void mark_initialized(void const* data, size_t size) {
  auto const address = reinterpret_cast<uint64_t>(data);
  Buffer* const buffer = find_buffer(address);
  if (buffer != nullptr && !buffer->initialized.empty()) {
    size_t const offset = address - reinterpret_cast<uint64_t>(buffer->data);
    std::memset(&buffer->initialized[offset], 1, std::min(size, buffer->size - offset));
  }
}

void forget_global_accesses() {
  for (auto& [address, buffer] : g_buffers) {
    buffer.shadow.reset();
  }
}

char* touch(Actor const& actor, uint64_t address, size_t size, Access access, char const* what) {
  if (uint32_t const shared = to_shared(address); shared != 0) {
    return touch_shared(actor, shared, size, access, what);
  }
  Machine& m = machine();
  m.subject = actor.thread;
  Thread const& thread = *actor.thread;
  Kernel const& kernel = *thread.grid().kernel;
  auto* const bytes = reinterpret_cast<char*>(address);
  if (kernel.local_bytes > 0 && bytes >= thread.local &&
      bytes + size <= thread.local + kernel.local_bytes) {
    return bytes;
  }
  char const* const parameters = thread.grid().parameters.get();
  if (bytes >= parameters && bytes + size <= parameters + kernel.parameter_bytes) {
    if (access != Access::kRead) {
      fault("memory", "%s: write to the kernel's parameters", what);
    }
    return bytes;
  }

  Buffer* const buffer = find_buffer(address);
  size_t const offset = buffer != nullptr ? size_t(bytes - buffer->data) : 0;
  if (buffer == nullptr || offset + size > buffer->size) {
    fault_out_of_bounds(address, size, access, what);
  }
  if (access != Access::kRead && buffer->read_only) {
    fault("memory", "%s: write of %zu bytes at offset %zu of '%s', which is read-only", what, size,
          offset, buffer->name.c_str());
  }
  check_initialized(*buffer, offset, size, access, what);
  count_global(*buffer, offset, size, access);
  if (m.racing && !buffer->read_only) {
    if (buffer->shadow == nullptr) {
      buffer->shadow = std::make_shared<Shadow>();
    }
    check_races(*buffer->shadow, actor, offset, size, access, buffer->name.c_str(), what);
  }
  return bytes;
}

void check_non_coherent(Thread const& thread, uint64_t address, size_t size, char const* what) {
  Buffer const* const buffer = find_buffer(address);
  if (buffer == nullptr || buffer->shadow == nullptr) {
    return;
  }
  size_t const offset = size_t(address - reinterpret_cast<uint64_t>(buffer->data));
  if (was_written_by(*buffer->shadow, thread.grid().serial, offset, size)) {
    report("memory",
           "%s: a non-coherent read of %zu bytes at offset %zu of '%s', which the kernel "
           "writes",
           what, size, offset, buffer->name.c_str());
  }
}

}  // namespace hostsim
