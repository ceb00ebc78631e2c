// cp.async.bulk.tensor, cp.reduce.async.bulk.tensor: boxes of tensors of one to five dimensions.
//
// The tensor map is made on the host from args.n, which TensorCase.n in the Python test packs: n[0]
// has the types and modes, n[1..5] the dimensions; n[6] is where the box lies in shared memory,
// n[7] an operation. The coordinates are args.in[1].
#include <cuda.h>

#include "async_ptx.cuh"

extern __shared__ __align__(1024) char dynamic_shared[];

namespace {

constexpr int kMaxRank = 5;

__host__ __device__ int bits(int word, int first, int count) {
  return word >> first & ((1 << count) - 1);
}

// ---- The packed description of a tensor and its box ---------------------------------------------

struct TensorCase {
  int const* n;

  __host__ __device__ int type() const { return bits(n[0], 0, 8); }
  __host__ __device__ int rank() const { return bits(n[0], 8, 4); }
  __host__ __device__ int swizzle() const { return bits(n[0], 12, 4); }
  __host__ __device__ int fill() const { return bits(n[0], 16, 4); }
  __host__ __device__ int padding() const { return bits(n[0], 20, 8); }  // bytes after each row
  __host__ __device__ int size(int i) const { return bits(n[1 + i], 0, 12); }
  __host__ __device__ int box(int i) const { return bits(n[1 + i], 12, 9); }
  __host__ __device__ int element_stride(int i) const { return bits(n[1 + i], 21, 4); }

  __host__ __device__ int element_bytes() const {
    constexpr int kBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2};  // by CUtensorMapDataType
    return kBytes[type()];
  }
  __device__ int box_bytes() const {
    int bytes = element_bytes() * box(0);
    for (int i = 1; i < rank(); ++i) {
      bytes *= (box(i) + element_stride(i) - 1) / element_stride(i);
    }
    return bytes;
  }
};

using EncodeFunction = decltype(&cuTensorMapEncodeTiled);

EncodeFunction encode_function() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                   &found);
  return reinterpret_cast<EncodeFunction>(function);
}

CUresult encode(CUtensorMap& map, TensorCase const& tensor, void const* data) {
  cuuint64_t sizes[kMaxRank], strides[kMaxRank];
  cuuint32_t box[kMaxRank], element_strides[kMaxRank];
  cuuint64_t const row = cuuint64_t(tensor.element_bytes()) * tensor.size(0);
  cuuint64_t stride = (row + 15) / 16 * 16 + tensor.padding();
  for (int i = 0; i < tensor.rank(); ++i) {
    sizes[i] = tensor.size(i);
    box[i] = tensor.box(i);
    element_strides[i] = tensor.element_stride(i);
    strides[i] = stride;
    stride *= i + 1 < tensor.rank() ? tensor.size(i + 1) : 1;
  }
  return encode_function()(&map, CUtensorMapDataType(tensor.type()), tensor.rank(),
                           const_cast<void*>(data), sizes, strides, box, element_strides,
                           CU_TENSOR_MAP_INTERLEAVE_NONE, CUtensorMapSwizzle(tensor.swizzle()),
                           CU_TENSOR_MAP_L2_PROMOTION_NONE, CUtensorMapFloatOOBfill(tensor.fill()));
}

// ---- The instructions, by rank ------------------------------------------------------------------

struct Coordinates {
  int c[kMaxRank];
};

__device__ Coordinates coordinates(Args const& args, int rank) {
  Coordinates result{};
  for (int i = 0; i < rank; ++i) {
    result.c[i] = args.input<int>(1)[i];
  }
  return result;
}

// An instruction of a tensor map, %0, two registers, %1 and %2, and the coordinates, from %3 on.
#define BY_RANK(rank, instruction, tensor_map, first, second, c)                                   \
  if constexpr (rank == 1) {                                                                       \
    asm volatile(instruction(1d, "{%3}")::"l"(tensor_map), "r"(first), "r"(second), "r"(c[0])      \
                 : "memory");                                                                      \
  } else if constexpr (rank == 2) {                                                                \
    asm volatile(instruction(2d, "{%3, %4}")::"l"(tensor_map), "r"(first), "r"(second), "r"(c[0]), \
                 "r"(c[1])                                                                         \
                 : "memory");                                                                      \
  } else if constexpr (rank == 3) {                                                                \
    asm volatile(instruction(3d, "{%3, %4, %5}")::"l"(tensor_map), "r"(first), "r"(second),        \
                 "r"(c[0]), "r"(c[1]), "r"(c[2])                                                   \
                 : "memory");                                                                      \
  } else if constexpr (rank == 4) {                                                                \
    asm volatile(instruction(4d, "{%3, %4, %5, %6}")::"l"(tensor_map), "r"(first), "r"(second),    \
                 "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3])                                        \
                 : "memory");                                                                      \
  } else {                                                                                         \
    asm volatile(instruction(5d, "{%3, %4, %5, %6, %7}")::"l"(tensor_map), "r"(first),             \
                 "r"(second), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]), "r"(c[4])                \
                 : "memory");                                                                      \
  }

#define LOAD(dim, coordinates) \
  "cp.async.bulk.tensor." #dim \
  ".shared::cluster.global.tile.mbarrier::complete_tx::bytes [%1], [%0, " coordinates "], [%2];"
#define STORE(dim, coordinates) \
  "cp.async.bulk.tensor." #dim ".global.shared::cta.bulk_group [%0, " coordinates "], [%1]; // %2"
#define PREFETCH(dim, coordinates) \
  "cp.async.bulk.prefetch.tensor." #dim ".L2.global [%0, " coordinates "]; // %1 %2"

template <int kRank>
__device__ void tensor_load(CUtensorMap const& map, char* to, Coordinates const& at,
                            uint64_t& barrier) {
  BY_RANK(kRank, LOAD, &map, to_shared(to), to_shared(&barrier), at.c)
}

template <int kRank>
__device__ void tensor_store(CUtensorMap const& map, char const* from, Coordinates const& at) {
  BY_RANK(kRank, STORE, &map, to_shared(from), 0, at.c)
}

template <int kRank>
__device__ void tensor_prefetch(CUtensorMap const& map, Coordinates const& at) {
  BY_RANK(kRank, PREFETCH, &map, 0, 0, at.c)
}

// ---- Kernels ------------------------------------------------------------------------------------

// Loads the box, and writes the shared memory as it then is, byte by byte.
template <int kRank>
__global__ void load(__grid_constant__ Args const args, __grid_constant__ CUtensorMap const map) {
  __shared__ uint64_t full;
  TensorCase const tensor{args.n};
  char* const box = dynamic_shared + args.n[6];
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
    Coordinates const at = coordinates(args, kRank);
    tensor_prefetch<kRank>(map, at);
    mbarrier_arrive_expect_tx(full, tensor.box_bytes());
    tensor_load<kRank>(map, box, at, full);
  }
  __syncthreads();
  mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < tensor.box_bytes(); i += blockDim.x) {
    args.output<char>(0)[i] = box[i];
  }
}

__device__ void fill_box(Args const& args, char* box, int bytes) {
  for (int i = threadIdx.x; i < bytes; i += blockDim.x) {
    box[i] = args.input<char>(0)[i];
  }
  fence_proxy_async();
  __syncthreads();
}

// Stores a box, whose bytes in shared memory are the input.
template <int kRank>
__global__ void store(__grid_constant__ Args const args, __grid_constant__ CUtensorMap const map) {
  char* const box = dynamic_shared + args.n[6];
  fill_box(args, box, TensorCase{args.n}.box_bytes());
  if (threadIdx.x == 0) {
    tensor_store<kRank>(map, box, coordinates(args, kRank));
    bulk_commit();
    bulk_wait<0>();
  }
}

#define REDUCE(name)                                                     \
  asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta." name \
               ".tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),     \
               "r"(to_shared(box)), "r"(at.c[0]), "r"(at.c[1])           \
               : "memory")

__global__ void reduce(__grid_constant__ Args const args, __grid_constant__ CUtensorMap const map) {
  char* const box = dynamic_shared + args.n[6];
  fill_box(args, box, TensorCase{args.n}.box_bytes());
  if (threadIdx.x == 0) {
    Coordinates const at = coordinates(args, 2);
    switch (args.n[7]) {
      case 0: REDUCE("add"); break;
      case 1: REDUCE("min"); break;
      case 2: REDUCE("max"); break;
      case 3: REDUCE("inc"); break;
      case 4: REDUCE("dec"); break;
      case 5: REDUCE("and"); break;
      case 6: REDUCE("or"); break;
      default: REDUCE("xor"); break;
    }
    bulk_commit();
    bulk_wait<0>();
  }
}

// The blocks of a cluster of two load one half each of a box, for both.
__global__ void multicast(__grid_constant__ Args const args,
                          __grid_constant__ CUtensorMap const map) {
  __shared__ uint64_t full;
  TensorCase const tensor{args.n};
  int const bytes = tensor.box_bytes();
  unsigned const rank = cluster_rank();
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect_tx(full, 2 * bytes);
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    Coordinates const at = coordinates(args, 2);
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(
            to_shared(dynamic_shared + rank * bytes)),
        "l"(&map), "r"(at.c[0]), "r"(at.c[1] + int(rank) * tensor.box(1)), "r"(to_shared(&full)),
        "h"(static_cast<unsigned short>(3)), "l"(0x1000000000000000ll)
        : "memory");
  }
  mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < 2 * bytes; i += blockDim.x) {
    args.output<char>(0)[2 * bytes * blockIdx.x + i] = dynamic_shared[i];
  }
  cluster_sync();
}

// Changes a copy of a tensor map so that it describes another tensor, and loads with it.
__global__ void replace(__grid_constant__ Args const args,
                        __grid_constant__ CUtensorMap const map) {
  __shared__ alignas(128) CUtensorMap changed;
  __shared__ uint64_t full;
  auto* const global_map = args.output<CUtensorMap>(1);
  TensorCase const tensor{args.n};
  int const row_bytes = args.n[7];  // of the other tensor, which has twice the rows
  if (threadIdx.x < 32) {
    if (threadIdx.x == 0) {
      mbarrier_init(full, 1);
      fence_mbarrier_init();
      changed = map;
      unsigned const at = to_shared(&changed);
      asm volatile(
          "tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(at),
          "l"(args.in[2])
          : "memory");
      asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(at),
                   "r"(2 * tensor.size(1))
                   : "memory");
      asm volatile(
          "tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 0, %1;" ::"r"(at),
          "l"(int64_t(row_bytes))
          : "memory");
    }
    __syncwarp();
    asm volatile(
        "tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned"
        " [%0], [%1], 128;" ::"l"(global_map),
        "r"(to_shared(&changed))
        : "memory");
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(global_map)
                 : "memory");
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect_tx(full, tensor.box_bytes());
      tensor_load<2>(*global_map, dynamic_shared, coordinates(args, 2), full);
    }
  }
  __syncthreads();
  mbarrier_wait(full, 0);
  for (int i = threadIdx.x; i < tensor.box_bytes(); i += blockDim.x) {
    args.output<char>(0)[i] = dynamic_shared[i];
  }
}

// Launches with the map of a tensor at `data`.
int launch_with_map(void (*kernel)(Args, CUtensorMap), Args const& args, LaunchShape const& shape,
                    void const* data) {
  CUtensorMap map;
  if (encode(map, TensorCase{args.n}, data) != CUDA_SUCCESS) {
    return cudaErrorInvalidValue;
  }
  return launch_shaped(kernel, shape, args, map);
}

}  // namespace

MICRO_LAUNCHER(load) {
  static constexpr void (*kByRank[])(Args, CUtensorMap) = {load<1>, load<2>, load<3>, load<4>,
                                                           load<5>};
  return launch_with_map(kByRank[(TensorCase{args.n}.rank() - 1) % kMaxRank], args, shape,
                         args.in[0]);
}

MICRO_LAUNCHER(store) {
  static constexpr void (*kByRank[])(Args, CUtensorMap) = {store<1>, store<2>, store<3>, store<4>,
                                                           store<5>};
  return launch_with_map(kByRank[TensorCase{args.n}.rank() - 1], args, shape, args.out[0]);
}

MICRO_LAUNCHER(reduce) { return launch_with_map(reduce, args, shape, args.out[0]); }

MICRO_LAUNCHER(multicast) { return launch_with_map(multicast, args, shape, args.in[0]); }

MICRO_LAUNCHER(replace) { return launch_with_map(replace, args, shape, args.in[0]); }
