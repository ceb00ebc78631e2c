// mma.sync of every type and shape, and ldmatrix, stmatrix and movmatrix. The kernels move 32-bit
// registers only; which element is where is for the tests to know.
#include "conformance.cuh"

namespace {

__device__ unsigned shared_address(void const* pointer) {
  return unsigned(__cvta_generic_to_shared(pointer));
}

// The registers of a fragment, [lane][kCount].
template <int kCount>
struct Fragment {
  unsigned r[kCount];

  __device__ explicit Fragment(unsigned const* registers) {
    for (int i = 0; i < kCount; ++i) {
      r[i] = registers[threadIdx.x * kCount + i];
    }
  }
  __device__ void store(unsigned* registers) const {
    for (int i = 0; i < kCount; ++i) {
      registers[threadIdx.x * kCount + i] = r[i];
    }
  }
};

}  // namespace

// in0: A, in1: B, in2: C; out0: D. The lists of registers depend on how many there are: of C and D,
// of A, and of B half as many. The result goes to registers of its own, or over C.
#define MMA_4_4(name, types)                                                                     \
  MICRO_KERNEL(name) {                                                                           \
    Fragment<4> const a(args.input<unsigned>(0));                                                \
    Fragment<2> const b(args.input<unsigned>(1));                                                \
    Fragment<4> const c(args.input<unsigned>(2));                                                \
    Fragment<4> d = c;                                                                           \
    asm volatile("mma.sync.aligned." types                                                       \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"          \
                 : "=r"(d.r[0]), "=r"(d.r[1]), "=r"(d.r[2]), "=r"(d.r[3])                        \
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1]), \
                   "r"(c.r[0]), "r"(c.r[1]), "r"(c.r[2]), "r"(c.r[3]));                          \
    d.store(args.output<unsigned>(0));                                                           \
  }

#define MMA_4_2(name, types)                                                                      \
  MICRO_KERNEL(name) {                                                                            \
    Fragment<2> const a(args.input<unsigned>(0));                                                 \
    Fragment<1> const b(args.input<unsigned>(1));                                                 \
    Fragment<4> c(args.input<unsigned>(2));                                                       \
    asm volatile("mma.sync.aligned." types " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
                 : "+r"(c.r[0]), "+r"(c.r[1]), "+r"(c.r[2]), "+r"(c.r[3])                         \
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(b.r[0]));                                        \
    c.store(args.output<unsigned>(0));                                                            \
  }

#define MMA_2_4(name, types)                                                                      \
  MICRO_KERNEL(name) {                                                                            \
    Fragment<4> const a(args.input<unsigned>(0));                                                 \
    Fragment<2> const b(args.input<unsigned>(1));                                                 \
    Fragment<2> c(args.input<unsigned>(2));                                                       \
    asm volatile("mma.sync.aligned." types " {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%0, %1};"     \
                 : "+r"(c.r[0]), "+r"(c.r[1])                                                     \
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b.r[0]), "r"(b.r[1])); \
    c.store(args.output<unsigned>(0));                                                            \
  }

#define MMA_2_2(name, types)                                                      \
  MICRO_KERNEL(name) {                                                            \
    Fragment<2> const a(args.input<unsigned>(0));                                 \
    Fragment<1> const b(args.input<unsigned>(1));                                 \
    Fragment<2> c(args.input<unsigned>(2));                                       \
    asm volatile("mma.sync.aligned." types " {%0, %1}, {%2, %3}, {%4}, {%0, %1};" \
                 : "+r"(c.r[0]), "+r"(c.r[1])                                     \
                 : "r"(a.r[0]), "r"(a.r[1]), "r"(b.r[0]));                        \
    c.store(args.output<unsigned>(0));                                            \
  }

MMA_4_2(mma_m16n8k8_f32_bf16_bf16, "m16n8k8.row.col.f32.bf16.bf16.f32")
MMA_4_4(mma_m16n8k16_f32_bf16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MMA_4_2(mma_m16n8k8_f32_f16_f16, "m16n8k8.row.col.f32.f16.f16.f32")
MMA_4_4(mma_m16n8k16_f32_f16_f16, "m16n8k16.row.col.f32.f16.f16.f32")
MMA_2_2(mma_m16n8k8_f16_f16_f16, "m16n8k8.row.col.f16.f16.f16.f16")
MMA_2_4(mma_m16n8k16_f16_f16_f16, "m16n8k16.row.col.f16.f16.f16.f16")
MMA_4_2(mma_m16n8k4_f32_tf32_tf32, "m16n8k4.row.col.f32.tf32.tf32.f32")
MMA_4_4(mma_m16n8k8_f32_tf32_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")

#define MMA_FP8(a, b)                                                           \
  MMA_4_2(mma_m16n8k16_f32_##a##_##b, "m16n8k16.row.col.f32." #a "." #b ".f32") \
  MMA_4_4(mma_m16n8k32_f32_##a##_##b, "m16n8k32.row.col.f32." #a "." #b ".f32") \
  MMA_2_2(mma_m16n8k16_f16_##a##_##b, "m16n8k16.row.col.f16." #a "." #b ".f16") \
  MMA_2_4(mma_m16n8k32_f16_##a##_##b, "m16n8k32.row.col.f16." #a "." #b ".f16")

MMA_FP8(e4m3, e4m3)
MMA_FP8(e4m3, e5m2)
MMA_FP8(e5m2, e4m3)
MMA_FP8(e5m2, e5m2)

#define MMA_INTEGER(a, b)                                                       \
  MMA_4_2(mma_m16n8k16_s32_##a##_##b, "m16n8k16.row.col.s32." #a "." #b ".s32") \
  MMA_4_4(mma_m16n8k32_s32_##a##_##b, "m16n8k32.row.col.s32." #a "." #b ".s32") \
  MMA_4_4(mma_satfinite_s32_##a##_##b, "m16n8k32.row.col.satfinite.s32." #a "." #b ".s32")

MMA_INTEGER(s8, s8)
MMA_INTEGER(s8, u8)
MMA_INTEGER(u8, s8)
MMA_INTEGER(u8, u8)

namespace {

constexpr int kSharedBytes = 4096;

// Copies in0 to shared memory, or shared memory to out0.
__device__ void fill(unsigned* shared, Args const& args) {
  for (int i = int(threadIdx.x); i < kSharedBytes / 4; i += 32) {
    shared[i] = args.input<unsigned>(0)[i];
  }
  __syncwarp();
}

__device__ void drain(unsigned const* shared, Args const& args) {
  __syncwarp();
  for (int i = int(threadIdx.x); i < kSharedBytes / 4; i += 32) {
    args.output<unsigned>(0)[i] = shared[i];
  }
}

}  // namespace

// in0: contents of shared memory, in1: the address of each lane in it; out0: [4][lane]. A form that
// loads fewer matrices leaves the rest of the registers alone.
#define LDMATRIX(name, form, registers)                                                     \
  MICRO_KERNEL(name) {                                                                      \
    __shared__ __align__(16) unsigned shared[kSharedBytes / 4];                             \
    fill(shared, args);                                                                     \
    unsigned const address = shared_address(shared) + args.input<unsigned>(1)[threadIdx.x]; \
    unsigned r[4] = {~0u, ~0u, ~0u, ~0u};                                                   \
    asm volatile("ldmatrix.sync.aligned.m8n8." form ".b16 " registers ", [%4];"             \
                 : "+r"(r[0]), "+r"(r[1]), "+r"(r[2]), "+r"(r[3])                           \
                 : "r"(address)                                                             \
                 : "memory");                                                               \
    for (int i = 0; i < 4; ++i) {                                                           \
      args.output<unsigned>(0)[32 * i + threadIdx.x] = r[i];                                \
    }                                                                                       \
  }

LDMATRIX(ldmatrix_x1, "x1.shared", "{%0}")
LDMATRIX(ldmatrix_x2, "x2.shared", "{%0, %1}")
LDMATRIX(ldmatrix_x4, "x4.shared::cta", "{%0, %1, %2, %3}")
LDMATRIX(ldmatrix_x1_trans, "x1.trans.shared", "{%0}")
LDMATRIX(ldmatrix_x2_trans, "x2.trans.shared", "{%0, %1}")
LDMATRIX(ldmatrix_x4_trans, "x4.trans.shared", "{%0, %1, %2, %3}")

// in0: what shared memory holds before, in1: addresses, in2: [4][lane]; out0: what it holds after.
#define STMATRIX(name, form, registers)                                                      \
  MICRO_KERNEL(name) {                                                                       \
    __shared__ __align__(16) unsigned shared[kSharedBytes / 4];                              \
    fill(shared, args);                                                                      \
    unsigned const address = shared_address(shared) + args.input<unsigned>(1)[threadIdx.x];  \
    unsigned r[4];                                                                           \
    for (int i = 0; i < 4; ++i) {                                                            \
      r[i] = args.input<unsigned>(2)[32 * i + threadIdx.x];                                  \
    }                                                                                        \
    asm volatile("stmatrix.sync.aligned.m8n8." form ".b16 [%4], " registers ";" ::"r"(r[0]), \
                 "r"(r[1]), "r"(r[2]), "r"(r[3]), "r"(address)                               \
                 : "memory");                                                                \
    drain(shared, args);                                                                     \
  }

STMATRIX(stmatrix_x1, "x1.shared", "{%0}")
STMATRIX(stmatrix_x2, "x2.shared", "{%0, %1}")
STMATRIX(stmatrix_x4, "x4.shared", "{%0, %1, %2, %3}")
STMATRIX(stmatrix_x1_trans, "x1.trans.shared", "{%0}")
STMATRIX(stmatrix_x2_trans, "x2.trans.shared::cta", "{%0, %1}")
STMATRIX(stmatrix_x4_trans, "x4.trans.shared", "{%0, %1, %2, %3}")

// Through a generic address, over the register that holds it.
MICRO_KERNEL(ldmatrix_generic) {
  __shared__ __align__(16) unsigned shared[kSharedBytes / 4];
  fill(shared, args);
  auto const* row = reinterpret_cast<char const*>(shared) + args.input<unsigned>(1)[threadIdx.x];
  unsigned r;
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.b16 {%0}, [%1];" : "=r"(r) : "l"(row) : "memory");
  args.output<unsigned>(0)[threadIdx.x] = r;
}

MICRO_KERNEL(movmatrix) {
  unsigned r = args.input<unsigned>(0)[threadIdx.x];
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(r));
  args.output<unsigned>(0)[threadIdx.x] = r;
}

// Lanes that come from both sides of a branch to ldmatrix and mma: in1 and in2 are B and C.
MICRO_KERNEL(ldmatrix_mma) {
  __shared__ __align__(16) unsigned shared[kSharedBytes / 4];
  fill(shared, args);
  unsigned row = threadIdx.x % 16;
  if (threadIdx.x >= 16) {
    row += args.n[0];  // the second 8 columns begin there, in units of 16 bytes
  }
  Fragment<2> const b(args.input<unsigned>(1));
  Fragment<4> c(args.input<unsigned>(2));
  unsigned a[4];
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(shared_address(shared) + 16 * row)
               : "memory");
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c.r[0]), "+r"(c.r[1]), "+r"(c.r[2]), "+r"(c.r[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.r[0]), "r"(b.r[1]));
  c.store(args.output<unsigned>(0));
}
