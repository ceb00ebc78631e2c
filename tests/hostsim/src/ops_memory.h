// State spaces and memory ordering, shared by loads, stores, atomics and fences.
#pragma once

#include "bind.h"
#include "clock.h"

namespace hostsim {

enum class Space : uint8_t {
  kGeneric,
  kGlobal,
  kShared,
  kSharedCluster,
  kLocal,
  kParameter,
  kConstant
};
enum class MemoryOrder : uint8_t { kWeak, kRelaxed, kAcquire, kRelease, kAcquireRelease };

bool is_shared(Space space);
Space take_space(Modifiers& modifiers);        // kGeneric if none is given
MemoryOrder take_order(Modifiers& modifiers);  // kWeak if none is given; volatile is kRelaxed
FenceScope take_scope(Modifiers& modifiers);   // kWideScope if none is given

// The synchronisation of one thread's fence, and of a strong read or write at a host address. Between
// them they are the release and acquire patterns of the PTX memory model.
void fence(Thread& thread, FenceScope scope);
void synchronize_read(Thread& thread, void const* address, FenceScope scope, MemoryOrder order);
void synchronize_write(Thread& thread, void const* address, FenceScope scope, MemoryOrder order);

}  // namespace hostsim
