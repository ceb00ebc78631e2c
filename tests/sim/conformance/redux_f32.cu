// redux.sync of floats, which only sm_100a and its kin have: for the emulator, not for this GPU.
#include "conformance.cuh"

// in0: values, in1: member masks.
MICRO_KERNEL(redux_f32) {
  int const lane = int(threadIdx.x);
  float const value = args.input<float>(0)[lane];
  unsigned const mask = args.input<unsigned>(1)[lane];
  auto* out = args.output<float>(0) + 8 * lane;
  asm volatile("redux.sync.min.f32 %0, %1, %2;" : "=f"(out[0]) : "f"(value), "r"(mask));
  asm volatile("redux.sync.max.f32 %0, %1, %2;" : "=f"(out[1]) : "f"(value), "r"(mask));
  asm volatile("redux.sync.min.abs.f32 %0, %1, %2;" : "=f"(out[2]) : "f"(value), "r"(mask));
  asm volatile("redux.sync.max.abs.f32 %0, %1, %2;" : "=f"(out[3]) : "f"(value), "r"(mask));
  asm volatile("redux.sync.min.NaN.f32 %0, %1, %2;" : "=f"(out[4]) : "f"(value), "r"(mask));
  asm volatile("redux.sync.max.NaN.f32 %0, %1, %2;" : "=f"(out[5]) : "f"(value), "r"(mask));
  asm volatile("redux.sync.min.abs.NaN.f32 %0, %1, %2;" : "=f"(out[6]) : "f"(value), "r"(mask));
  asm volatile("redux.sync.max.abs.NaN.f32 %0, %1, %2;" : "=f"(out[7]) : "f"(value), "r"(mask));
}
