// Conversions between number formats: exhaustive where the source has 8 or 16 bits.
#include "conformance.cuh"

namespace {

__device__ int element() { return int(blockIdx.x * blockDim.x + threadIdx.x); }

}  // namespace

// All codes of the 16-bit formats to float32, which holds them exactly.
MICRO_KERNEL(widen_16) {
  int const i = element();
  unsigned short const code = static_cast<unsigned short>(i);
  float from_half, from_bfloat;
  asm volatile("cvt.f32.f16 %0, %1;" : "=f"(from_half) : "h"(code));
  asm volatile("cvt.f32.bf16 %0, %1;" : "=f"(from_bfloat) : "h"(code));
  args.output<float>(0)[i] = from_half;
  args.output<float>(1)[i] = from_bfloat;
}

MICRO_KERNEL(narrow_to_16) {
  int const i = element();
  float const x = args.input<float>(0)[i];
  unsigned short half, bfloat, half_zero;
  unsigned pair, bfloat_pair;
  asm volatile("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  asm volatile("cvt.rz.f16.f32 %0, %1;" : "=h"(half_zero) : "f"(x));
  asm volatile("cvt.rn.bf16.f32 %0, %1;" : "=h"(bfloat) : "f"(x));
  asm volatile("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(-x), "f"(x));
  asm volatile("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bfloat_pair) : "f"(-x), "f"(x));
  args.output<unsigned short>(0)[i] = half;
  args.output<unsigned short>(1)[i] = bfloat;
  args.output<uint2>(2)[i] = {pair, bfloat_pair};
  args.output<unsigned short>(3)[i] = half_zero;
}

// Both 8-bit formats: two codes of a pair to half, and float32 to a pair of codes.
MICRO_KERNEL(widen_8) {
  int const i = element();
  unsigned short const codes = static_cast<unsigned short>(i);
  unsigned e4m3, e5m2;
  asm volatile("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(e4m3) : "h"(codes));
  asm volatile("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(e5m2) : "h"(codes));
  args.output<unsigned>(0)[i] = e4m3;
  args.output<unsigned>(1)[i] = e5m2;
}

MICRO_KERNEL(narrow_to_8) {
  int const i = element();
  float const x = args.input<float>(0)[i];
  unsigned short e4m3, e5m2;
  asm volatile("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(e4m3) : "f"(-x), "f"(x));
  asm volatile("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(e5m2) : "f"(-x), "f"(x));
  args.output<unsigned short>(0)[i] = e4m3;
  args.output<unsigned short>(1)[i] = e5m2;
}

MICRO_KERNEL(half_pair_to_8) {
  int const i = element();
  unsigned const pair = unsigned(i) | unsigned(i ^ 0x8000) << 16;
  unsigned short e4m3, e5m2;
  asm volatile("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(e4m3) : "r"(pair));
  asm volatile("cvt.rn.satfinite.e5m2x2.f16x2 %0, %1;" : "=h"(e5m2) : "r"(pair));
  args.output<unsigned short>(0)[i] = e4m3;
  args.output<unsigned short>(1)[i] = e5m2;
}

// .relu, to and from the 8-bit formats; in0: float32, as many as there are codes.
MICRO_KERNEL(rectified_pairs) {
  int const i = element();
  float const x = args.input<float>(0)[i];
  unsigned const pair = unsigned(i) | unsigned(i ^ 0x8000) << 16;
  unsigned short const codes = static_cast<unsigned short>(i);
  unsigned short narrow[4];
  unsigned wide[4];
  asm volatile("cvt.rn.satfinite.relu.e4m3x2.f32 %0, %1, %2;" : "=h"(narrow[0]) : "f"(-x), "f"(x));
  asm volatile("cvt.rn.satfinite.relu.e5m2x2.f32 %0, %1, %2;" : "=h"(narrow[1]) : "f"(-x), "f"(x));
  asm volatile("cvt.rn.satfinite.relu.e4m3x2.f16x2 %0, %1;" : "=h"(narrow[2]) : "r"(pair));
  asm volatile("cvt.rn.satfinite.relu.e5m2x2.f16x2 %0, %1;" : "=h"(narrow[3]) : "r"(pair));
  asm volatile("cvt.rn.relu.f16x2.e4m3x2 %0, %1;" : "=r"(wide[0]) : "h"(codes));
  asm volatile("cvt.rn.relu.f16x2.e5m2x2 %0, %1;" : "=r"(wide[1]) : "h"(codes));
  asm volatile("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(wide[2]) : "f"(-x), "f"(x));
  asm volatile("cvt.rz.relu.bf16x2.f32 %0, %1, %2;" : "=r"(wide[3]) : "f"(-x), "f"(x));
  for (int k = 0; k < 4; ++k) {
    args.output<unsigned short>(0)[4 * i + k] = narrow[k];
    args.output<unsigned>(1)[4 * i + k] = wide[k];
  }
}

// Float to integer, in each rounding, and back.
MICRO_KERNEL(float_and_integer) {
  int const i = element();
  float const x = args.input<float>(0)[i];
  auto* out = args.output<int>(0) + 6 * i;
  asm volatile("cvt.rzi.s32.f32 %0, %1;" : "=r"(out[0]) : "f"(x));
  asm volatile("cvt.rni.s32.f32 %0, %1;" : "=r"(out[1]) : "f"(x));
  asm volatile("cvt.rmi.s32.f32 %0, %1;" : "=r"(out[2]) : "f"(x));
  asm volatile("cvt.rpi.s32.f32 %0, %1;" : "=r"(out[3]) : "f"(x));
  asm volatile("cvt.rzi.u32.f32 %0, %1;" : "=r"(out[4]) : "f"(x));
  float back;
  asm volatile("cvt.rn.f32.s32 %0, %1;" : "=f"(back) : "r"(args.input<int>(1)[i]));
  out[5] = __float_as_int(back);
}

MICRO_KERNEL(integer_widths) {
  int const i = element();
  int const x = args.input<int>(0)[i];
  auto* out = args.output<int>(0) + 5 * i;
  asm volatile("cvt.s32.s8 %0, %1;" : "=r"(out[0]) : "r"(x));
  asm volatile("cvt.u32.u16 %0, %1;" : "=r"(out[1]) : "h"(short(x)));
  asm volatile("cvt.sat.s8.s32 %0, %1;" : "=r"(out[2]) : "r"(x));
  asm volatile("cvt.sat.u8.s32 %0, %1;" : "=r"(out[3]) : "r"(x));
  long long wide;
  asm volatile("cvt.s64.s32 %0, %1;" : "=l"(wide) : "r"(x));
  out[4] = int(wide >> 32);
}
