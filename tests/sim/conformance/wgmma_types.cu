// wgmma of every type, with A in shared memory and in registers, and of the least and largest N.
#include "wgmma.cuh"

namespace {

using namespace cute;
using wgmma::Major;
using wgmma::ScaleIn;

// The instruction of these types, both operands K-major.
template <class A, class B, class D, int kColumns = 64>
__device__ void from_shared(Args const& args) {
  using Tile = Shape<_64, Int<kColumns>, Int<128 / sizeof(A)>>;
  using Op = decltype(SM90::GMMA::ss_op_selector<A, B, D, Tile>());
  wgmma::Product<Op, GMMA::Layout_K_SW128_Atom<A>, GMMA::Layout_K_SW128_Atom<B>,
                 128 / sizeof(A)>::run(args);
}

template <class A, class B, class D, int kColumns = 64>
__device__ void from_registers(Args const& args) {
  using Tile = Shape<_64, Int<kColumns>, Int<128 / sizeof(A)>>;
  using Op = decltype(SM90::GMMA::rs_op_selector<A, B, D, Tile>());
  wgmma::Product<Op, GMMA::Layout_K_SW128_Atom<A>, GMMA::Layout_K_SW128_Atom<B>,
                 128 / sizeof(A)>::run(args);
}

// With A or B negated.
template <ScaleIn kScaleA, ScaleIn kScaleB>
__device__ void scaled(Args const& args) {
  using T = half_t;
  using Op = SM90::GMMA::MMA_64x64x16_F32F16F16_SS<Major::K, Major::K, kScaleA, kScaleB>;
  using Atom = GMMA::Layout_K_SW128_Atom<T>;
  wgmma::Product<Op, Atom, Atom, 64>::run(args);
}

using bf16 = bfloat16_t;
using f16 = half_t;
using f32 = float;
using tf32 = tfloat32_t;
using e4m3 = float_e4m3_t;
using e5m2 = float_e5m2_t;
using s8 = int8_t;
using u8 = uint8_t;
using s32 = int32_t;

}  // namespace

#define SHARED(d, a, b) \
  MICRO_KERNEL(shared_##d##_##a##_##b) { from_shared<a, b, d>(args); }
#define REGISTERS(d, a, b) \
  MICRO_KERNEL(registers_##d##_##a##_##b) { from_registers<a, b, d>(args); }

SHARED(f32, bf16, bf16)
SHARED(f32, f16, f16)
SHARED(f16, f16, f16)
SHARED(f32, tf32, tf32)
SHARED(f32, e4m3, e4m3)
SHARED(f16, e4m3, e5m2)
SHARED(f32, e5m2, e4m3)
SHARED(f16, e5m2, e5m2)
SHARED(s32, s8, s8)
SHARED(s32, s8, u8)
SHARED(s32, u8, s8)
SHARED(s32, u8, u8)
REGISTERS(f16, f16, f16)
REGISTERS(f32, tf32, tf32)
REGISTERS(f16, e4m3, e4m3)
REGISTERS(f32, e5m2, e5m2)
REGISTERS(s32, s8, u8)

MICRO_KERNEL(columns_8) { from_shared<bf16, bf16, f32, 8>(args); }
MICRO_KERNEL(columns_256) { from_shared<e4m3, e4m3, f32, 256>(args); }
MICRO_KERNEL(negated_a) { scaled<ScaleIn::Neg, ScaleIn::One>(args); }
MICRO_KERNEL(negated_b) { scaled<ScaleIn::One, ScaleIn::Neg>(args); }
MICRO_KERNEL(negated_both) { scaled<ScaleIn::Neg, ScaleIn::Neg>(args); }
