// The last of several CTAs to arrive somewhere goes on with what all of them have left in global
// memory. Nobody waits, so it does not matter which of them run together.
#pragma once

#include <cutlass/cutlass.h>

#include <cstdint>

namespace p_eagle {

// Orders what this thread has done, or has learnt of by a barrier, before what it does next, for all
// threads of the device. __threadfence() orders more than that, and costs more.
CUTLASS_DEVICE void fence_device() { asm volatile("fence.acq_rel.gpu;\n" ::: "memory"); }

// Whether this CTA is the last of `num_ctas` that arrive at `counter`, which is then zero again.
// For one thread, between two __syncthreads(): the one before it, that all have stored what the last
// will read; the one after, that the last may read it.
CUTLASS_DEVICE bool arrives_last(int32_t* counter, int num_ctas) {
  fence_device();  // what the CTA has stored comes before its arrival
  bool const is_last = atomicAdd(counter, 1) == num_ctas - 1;
  fence_device();  // what the others have stored before theirs comes before what is read now
  if (is_last) {
    *counter = 0;  // for the next kernel
  }
  return is_last;
}

}  // namespace p_eagle
