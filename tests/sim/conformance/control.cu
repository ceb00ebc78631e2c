// Control flow: lanes that part and meet, loops, tables of labels, called functions, scopes, and
// values that live across all of them.
#include <cstdio>

#include "conformance.cuh"

namespace {

__constant__ int kPrimes[8] = {2, 3, 5, 7, 11, 13, 17, 19};
__constant__ float kWeights[4] = {0.5f, -1.25f, 3.0f, 1e-3f};
__device__ int const kFirst[3] = {100, 101, 102};
__device__ int const kSecond[2] = {200, 201};
__device__ int const* const kRows[2] = {kFirst, &kSecond[1]};
__device__ char const* const kNames[3] = {"zero", "one", "two"};

struct Pair {
  int first;
  double second;
  signed char tag;
};

// ---- Functions that stay calls ----------------------------------------------------------------------

__device__ __noinline__ int collatz_steps(int n) {
  int steps = 0;
  while (n != 1) {
    n = n % 2 == 0 ? n / 2 : 3 * n + 1;
    ++steps;
  }
  return steps;
}

__device__ __noinline__ Pair scale(Pair pair, int factor) {
  if (factor < 0) {
    return {-1, 0.0, 'n'};  // an early return, which only some lanes take
  }
  pair.first *= factor;
  pair.second += factor;
  pair.tag = static_cast<signed char>(pair.tag - 1);
  return pair;
}

// Calls another function from divergent code, in a loop, with an array on its stack.
__device__ __noinline__ int sum_of_steps(int count, int skip) {
  int history[8];
  for (int i = 0; i < 8; ++i) {
    history[i] = i < count && i != skip ? collatz_steps(i + 3) : -i;
  }
  int sum = 0;
  for (int i = 0; i < 8; ++i) {
    sum = sum * 3 + history[(i * 5 + count) % 8];
  }
  return sum;
}

__device__ __noinline__ void store_both(int* to, int a, int b) {
  to[0] = a;
  if (b >= 0) {
    to[1] = b;
  }
}

}  // namespace

// ---- Branches ---------------------------------------------------------------------------------------

MICRO_KERNEL(divergent_loops) {
  int const n = args.input<int>(0)[threadIdx.x];
  int total = 0;
#pragma unroll 1
  for (int i = 0; i < n; ++i) {
    if (i % 3 == 1) {
      continue;
    }
#pragma unroll 1
    for (int k = i; k < n; k += 2) {
      total = total * 5 + k;
      if (total > 1000) {
        total %= 1000;
        break;
      }
    }
  }
  args.output<int>(0)[threadIdx.x] = total;
}

MICRO_KERNEL(nested_branches) {
  int const x = args.input<int>(0)[threadIdx.x];
  int* const out = args.output<int>(0) + 3 * threadIdx.x;
  if (x < 0) {
    out[0] = 1;
    if (x < -10) {
      out[1] = x % 2 == 0 ? 2 : 3;
      if (x == -13) {
        out[2] = 4;
        return;
      }
    } else {
      out[1] = 5;
    }
    out[2] = 6;
  } else if (x > 10) {
    out[0] = 7;
    out[1] = 8;
    out[2] = x > 20 ? 9 : 10;
  } else {
    out[0] = out[1] = out[2] = 11;
  }
}

MICRO_KERNEL(switch_statement) {
  int const x = args.input<int>(0)[threadIdx.x];
  int result = 1;
  switch (x) {
    case 0: result = 10; break;
    case 1: result = 20;  // falls through
    case 2: result += 3; break;
    case 3: result = x * x; break;
    case 4:
    case 5: result = -x; break;
    case 9: result = 99; break;
    default: result = 7;
  }
  args.output<int>(0)[threadIdx.x] = result;
}

// brx.idx, which the compiler rarely makes.
MICRO_KERNEL(indexed_branch) {
  int const index = args.input<int>(0)[threadIdx.x];
  int result = -1;
  asm volatile(
      "{\n"
      ".reg .pred wanted;\n"
      "setp.lt.s32 wanted, %1, 4;\n"
      "table: .branchtargets first, second, third, second;\n"
      "@wanted brx.idx %1, table;\n"
      "mov.b32 %0, 1000;\n"
      "bra.uni done;\n"
      "first: mov.b32 %0, 10;\n"
      "bra.uni done;\n"
      "second: mov.b32 %0, 20;\n"
      "third: add.s32 %0, %0, 1;\n"
      "done:\n"
      "}"
      : "+r"(result)
      : "r"(index));
  args.output<int>(0)[threadIdx.x] = result;
}

// ---- Leaving ----------------------------------------------------------------------------------------

// Lanes leave one by one; the rest still meets.
MICRO_KERNEL(early_exit) {
  __shared__ int values[32];
  int const lane = int(threadIdx.x);
  if (lane % 4 == 3) {
    args.output<int>(0)[lane] = -lane;
    return;
  }
  unsigned const stay = 0x77777777;
  values[lane] = lane * lane;
  __syncwarp(stay);
  int const next = (lane + 1) % 4 == 3 ? lane - 2 : lane + 1;
  args.output<int>(0)[lane] = values[next] + __shfl_sync(stay, lane, next);
}

MICRO_KERNEL(guarded_exit) {
  int const x = args.input<int>(0)[threadIdx.x];
  args.output<int>(0)[threadIdx.x] = 1;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.gt.s32 p, %0, 5;\n"
      "@p exit;\n"
      "}" ::"r"(x)
      : "memory");
  args.output<int>(0)[threadIdx.x] = 2;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.gt.s32 p, %0, 0;\n"
      "@!p ret;\n"
      "}" ::"r"(x)
      : "memory");
  args.output<int>(0)[threadIdx.x] = 3;
}

// ---- Calls ------------------------------------------------------------------------------------------

MICRO_KERNEL(calls) {
  int const x = args.input<int>(0)[threadIdx.x];
  int* const out = args.output<int>(0) + 4 * threadIdx.x;
  out[3] = sum_of_steps(x % 9, x % 4);
  Pair pair{x, 0.5, 'a'};
#pragma unroll 1
  for (int i = 0; i < x % 3; ++i) {
    pair = scale(pair, i + 2);
  }
  if (x % 5 == 0) {
    pair = scale(pair, -1);
  }
  out[0] = pair.first;
  store_both(out + 1, int(pair.second * 2), pair.tag == 'n' ? -1 : pair.tag);
}

MICRO_KERNEL(local_array) {
  unsigned const x = args.input<unsigned>(0)[threadIdx.x];
  unsigned values[16];
  for (unsigned i = 0; i < 16; ++i) {
    values[i] = i * x;
  }
#pragma unroll 1
  for (unsigned i = 0; i < 40; ++i) {
    values[(i * x) & 15] += values[(i + x) & 15] ^ i;
  }
  unsigned sum = 0;
  for (unsigned i = 0; i < 16; ++i) {
    sum = sum * 31 + values[i];
  }
  args.output<unsigned>(0)[threadIdx.x] = sum;
}

MICRO_KERNEL(tables) {
  int const x = args.input<int>(0)[threadIdx.x];
  args.output<int>(0)[threadIdx.x] = kPrimes[x & 7] * 1000 + kRows[x & 1][0];
  args.output<float>(1)[threadIdx.x] = kWeights[x & 3];
  char const* const name = kNames[x % 3];
  int length = 0;
  while (name[length] != '\0') {
    ++length;
  }
  args.output<int>(2)[threadIdx.x] = length * 256 + name[0];
}

// ---- Values that live across branches ---------------------------------------------------------------

// Values carried around loops, swapped, written under conditions in one iteration and read in a
// later one, and kept from before a loop to after it.
MICRO_KERNEL(live_values) {
  int const x = args.input<int>(0)[threadIdx.x];
  int const before = x * 7 + 3;
  int a = x, b = 1, kept = -1, last = 0, toggle = 0;
#pragma unroll 1
  for (int i = 0; i < 12 + x % 5; ++i) {
    int const old = a;
    a = b;
    b = old + b;
    if ((b & 3) == 1) {
      kept = b ^ i;
    }
#pragma unroll 1
    for (int k = 0; k < (x + i) % 4; ++k) {
      int const mixed = kept + k * toggle;
      if (mixed % 3 == 0) {
        last = mixed;
      } else {
        toggle = last - i;
      }
    }
    if (i == x) {
      a ^= before;
    }
  }
  int* const out = args.output<int>(0) + 6 * threadIdx.x;
  out[0] = a;
  out[1] = b;
  out[2] = kept;
  out[3] = last;
  out[4] = toggle;
  out[5] = before;
}

// A guarded instruction leaves the result of the lanes that it skips as it was.
MICRO_KERNEL(guarded_writes) {
  int const x = args.input<int>(0)[threadIdx.x];
  int sum;
  asm volatile(
      "{\n"
      ".reg .b32 i, kept, low, scaled;\n"
      ".reg .pred p, more;\n"
      "mov.b32 i, 0;\n"
      "mov.b32 kept, 1000;\n"
      "mov.b32 %0, 0;\n"
      "LOOP:\n"
      "and.b32 low, i, 3;\n"
      "mul.lo.s32 scaled, i, %1;\n"
      "setp.eq.s32 p, low, %1;\n"
      "@p mov.b32 kept, scaled;\n"
      "mad.lo.s32 %0, %0, 3, kept;\n"
      "add.s32 i, i, 1;\n"
      "setp.lt.s32 more, i, 7;\n"
      "@more bra LOOP;\n"
      "}"
      : "=&r"(sum)
      : "r"(x));
  args.output<int>(0)[threadIdx.x] = sum;
}

// A value that is used behind a way out of the loop lives until the next iteration, past temporaries.
MICRO_KERNEL(used_behind_a_way_out) {
  int const x = args.input<int>(0)[threadIdx.x];
  int sum;
  asm volatile(
      "{\n"
      ".reg .b32 i, kept, temporary;\n"
      ".reg .pred done;\n"
      "mov.b32 i, 0;\n"
      "mul.lo.s32 kept, %1, 5;\n"
      "mov.b32 %0, 0;\n"
      "AGAIN:\n"
      "setp.ge.s32 done, i, 5;\n"
      "@done bra OUT;\n"
      "add.s32 %0, %0, kept;\n"
      "mul.lo.s32 temporary, i, 7;\n"
      "add.s32 %0, %0, temporary;\n"
      "add.s32 i, i, 1;\n"
      "bra AGAIN;\n"
      "OUT:\n"
      "}"
      : "=&r"(sum)
      : "r"(x));
  args.output<int>(0)[threadIdx.x] = sum;
}

// Registers and labels of the same names in scopes that nest.
MICRO_KERNEL(scopes) {
  int x = args.input<int>(0)[threadIdx.x];
  asm volatile(
      "{\n"
      ".reg .b32 t, %%u;\n"
      ".reg .pred p;\n"
      "mov.b32 t, 5;\n"
      "setp.gt.s32 p, %0, 8;\n"
      "{\n"
      ".reg .b32 t;\n"
      "mov.b32 t, 100;\n"
      "@p bra NEXT;\n"
      "add.s32 t, t, 1;\n"
      "NEXT:\n"
      "mov.b32 %%u, t;\n"
      "}\n"
      "@!p bra NEXT;\n"
      "add.s32 t, t, 10;\n"
      "NEXT:\n"
      "mad.lo.s32 %0, %%u, 1000, t;\n"
      "}"
      : "+r"(x));
  asm volatile("{ .reg .b32 t; NEXT: mov.b32 t, %0; add.s32 %0, t, t; }" : "+r"(x));
  args.output<int>(0)[threadIdx.x] = x;
}

// ---- About the execution ----------------------------------------------------------------------------

MICRO_KERNEL(clocks) {
  long long const start = clock64();
  unsigned const start32 = clock();
  unsigned long long start_ns, end_ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start_ns));
  while (clock64() - start < 20) {
    __nanosleep(10);
  }
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(end_ns));
  args.output<int>(0)[threadIdx.x] = clock() != start32 && end_ns >= start_ns;
}

MICRO_KERNEL(active_lanes) {
  unsigned const odd = threadIdx.x & 1;
  unsigned mask;
  if (odd) {
    mask = __activemask();
  } else {
    mask = ~__activemask();
  }
  args.output<unsigned>(0)[threadIdx.x] = mask;
}

// Hints that change no result.
MICRO_KERNEL(hints) {
  int const* const in = args.input<int>(0) + threadIdx.x;
  int value;
  asm volatile(
      "{\n"
      ".reg .b64 policy;\n"
      "createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64 policy, 0.5;\n"
      "ld.global.L2::cache_hint.b32 %0, [%1], policy;\n"
      "pmevent 3;\n"
      "}"
      : "=r"(value)
      : "l"(in));
  args.output<int>(0)[threadIdx.x] = value;
}

MICRO_KERNEL(print) {
  int const x = args.input<int>(0)[threadIdx.x];
  int count = -1;
  if (x >= 0) {
    count = printf("[%d] %s %5.2f %c %llx %-4u|%%|%*d %ld\n", x, kNames[x % 3], x * 0.25, 'a' + x,
                   (1ull << 40) + x, unsigned(x), 3, x, -5l);
  }
  args.output<int>(0)[threadIdx.x] = count;
}
