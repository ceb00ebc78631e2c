// wgmma of bfloat16 from all eight layouts of shared memory, for A and for B. Where two warpgroups
// work side by side, each multiplies rows of its own by all of B.
#include "wgmma.cuh"

namespace {

using namespace cute;
using wgmma::Major;
using T = bfloat16_t;

constexpr int kDepth = 64;

template <Major kMajorA, Major kMajorB>
using Op = SM90::GMMA::MMA_64x64x16_F32BF16BF16_SS<kMajorA, kMajorB>;
template <Major kMajorB>
using RegisterOp = SM90::GMMA::MMA_64x64x16_F32BF16BF16_RS<Major::K, kMajorB>;
// Wide enough for two rows of the widest swizzle.
template <Major kMajorB>
using WideOp = SM90::GMMA::MMA_64x128x16_F32BF16BF16_SS<Major::K, kMajorB>;

using K0 = GMMA::Layout_K_INTER_Atom<T>;
using K32 = GMMA::Layout_K_SW32_Atom<T>;
using K64 = GMMA::Layout_K_SW64_Atom<T>;
using K128 = GMMA::Layout_K_SW128_Atom<T>;
using Mn0 = GMMA::Layout_MN_INTER_Atom<T>;
using Mn32 = GMMA::Layout_MN_SW32_Atom<T>;
using Mn64 = GMMA::Layout_MN_SW64_Atom<T>;
using Mn128 = GMMA::Layout_MN_SW128_Atom<T>;

template <class Op, class AtomA, class AtomB, int kWarpgroups = 1>
__device__ void multiply(Args const& args) {
  wgmma::Product<Op, AtomA, AtomB, kDepth, kWarpgroups>::run(args);
}

}  // namespace

MICRO_KERNEL(k128_k128) { multiply<Op<Major::K, Major::K>, K128, K128>(args); }
MICRO_KERNEL(k64_mn32) { multiply<Op<Major::K, Major::MN>, K64, Mn32>(args); }
MICRO_KERNEL(k32_mn64) { multiply<Op<Major::K, Major::MN>, K32, Mn64>(args); }
MICRO_KERNEL(k0_mn0) { multiply<Op<Major::K, Major::MN>, K0, Mn0>(args); }
MICRO_KERNEL(mn128_k32) { multiply<Op<Major::MN, Major::K>, Mn128, K32>(args); }
MICRO_KERNEL(mn64_k0) { multiply<Op<Major::MN, Major::K>, Mn64, K0>(args); }
MICRO_KERNEL(mn32_k64) { multiply<Op<Major::MN, Major::K>, Mn32, K64>(args); }
MICRO_KERNEL(mn0_mn128) { multiply<Op<Major::MN, Major::MN>, Mn0, Mn128>(args); }
MICRO_KERNEL(wide_mn128) { multiply<WideOp<Major::MN>, K128, Mn128>(args); }
MICRO_KERNEL(wide_mn0) { multiply<WideOp<Major::MN>, K128, Mn0>(args); }
MICRO_KERNEL(registers_k128) { multiply<RegisterOp<Major::K>, K128, K128>(args); }
MICRO_KERNEL(registers_mn64) { multiply<RegisterOp<Major::MN>, K128, Mn64>(args); }
MICRO_KERNEL(two_warpgroups) { multiply<Op<Major::MN, Major::K>, Mn128, K128, 2>(args); }
