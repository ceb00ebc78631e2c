// What host code sees of the CUDA runtime. Each function writes what it observed into `seen`, error
// codes mostly, and returns the first error that it did not provoke on purpose.

#include <cuda.h>

#include "conformance.cuh"

#define HOST_TEST(name) extern "C" __attribute__((visibility("default"))) int name(int* seen)

#define REQUIRE(call)                                             \
  if (cudaError_t const status = (call); status != cudaSuccess) { \
    return status;                                                \
  }

namespace {

constexpr int kCount = 64;
constexpr int kBytes = kCount * int(sizeof(int));

__constant__ int constants[4];
__device__ int result[4] = {1, 2, 3, 4};

__global__ void add_constants() { result[threadIdx.x] += constants[threadIdx.x]; }

__global__ void add(int* data, int value) { data[threadIdx.x] += value; }

__global__ void use_static_shared(int* data) {
  __shared__ int values[1000];
  for (int i = threadIdx.x; i < 1000; i += blockDim.x) {
    values[i] = i;
  }
  __syncthreads();
  data[threadIdx.x] = values[999 - threadIdx.x];
}

__global__ void use_dynamic_shared(int* data, int last) {
  extern __shared__ int values[];
  values[last] = 5;
  *data = values[last];
}

// Every block waits for all others.
__global__ void meet(int* out) {
  if (threadIdx.x == 0) {
    atomicAdd(out, 1);
    int come = 0;
    while (come != int(gridDim.x)) {
      asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(come) : "l"(out) : "memory");
    }
    atomicAdd(out + 1, 1);
  }
}

// Lets the next launch begin, and waits a while for what only that one says: out[1] is whether it did.
__global__ void trigger_and_listen(int* out) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  int said = 0;
  for (int tries = 0; tries < 1000 && said == 0; ++tries) {
    asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(said) : "l"(out) : "memory");
  }
  out[1] = said;
}

__global__ void speak_before_the_wait(int* out) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], 1;" ::"l"(out) : "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  out[2] = out[1] + 1;
}

// Memory for one test, released at its end.
struct DeviceInts {
  int* data = nullptr;
  DeviceInts() {
    cudaMalloc(&data, kBytes);
    cudaMemset(data, 0, kBytes);
  }
  ~DeviceInts() { cudaFree(data); }
  int first() const {
    int value = -1;
    cudaMemcpy(&value, data, sizeof value, cudaMemcpyDeviceToHost);
    return value;
  }
};

struct Stream {
  cudaStream_t stream = nullptr;
  explicit Stream(unsigned flags = cudaStreamNonBlocking) {
    cudaStreamCreateWithFlags(&stream, flags);
  }
  ~Stream() { cudaStreamDestroy(stream); }
  operator cudaStream_t() const { return stream; }
};

}  // namespace

// ---- Memory ---------------------------------------------------------------------------------------

HOST_TEST(symbols) {
  int const values[2] = {10, 20};
  REQUIRE(cudaMemcpyToSymbol(constants, values, sizeof values));
  REQUIRE(cudaMemcpyToSymbol(constants, values, sizeof values, sizeof values));
  add_constants<<<1, 4>>>();
  REQUIRE(cudaGetLastError());
  REQUIRE(cudaMemcpyFromSymbol(seen, result, 4 * sizeof(int)));
  void* address = nullptr;
  REQUIRE(cudaGetSymbolAddress(&address, result));
  REQUIRE(cudaMemcpy(seen + 4, address, sizeof(int), cudaMemcpyDeviceToHost));
  int const reset[4] = {1, 2, 3, 4};
  return cudaMemcpyToSymbol(result, reset, sizeof reset);
}

// A 2 x 3 block of a matrix with rows of 8, copied and filled.
HOST_TEST(copies_in_two_dimensions) {
  DeviceInts matrix, block;
  int const host[6] = {1, 2, 3, 4, 5, 6};
  size_t const pitch = 8 * sizeof(int), width = 3 * sizeof(int);
  REQUIRE(cudaMemcpy2D(matrix.data, pitch, host, width, width, 2, cudaMemcpyHostToDevice));
  REQUIRE(cudaMemset2D(matrix.data + 1, pitch, 0, sizeof(int), 2));
  REQUIRE(cudaMemcpy2DAsync(block.data, width, matrix.data, pitch, width, 2,
                            cudaMemcpyDeviceToDevice, nullptr));
  return cudaMemcpy(seen, block.data, sizeof host, cudaMemcpyDeviceToHost);
}

// Copies come after the kernels before them, and before the kernels after them.
HOST_TEST(order_in_a_stream) {
  DeviceInts a, b;
  Stream stream;
  add<<<1, kCount, 0, stream>>>(a.data, 1);
  REQUIRE(cudaMemcpyAsync(b.data, a.data, kBytes, cudaMemcpyDeviceToDevice, stream));
  add<<<1, kCount, 0, stream>>>(a.data, 1);
  REQUIRE(cudaStreamSynchronize(stream));
  seen[0] = a.first();
  seen[1] = b.first();
  return cudaSuccess;
}

HOST_TEST(bad_arguments_of_memory_functions) {
  DeviceInts ints;
  int value = 0;
  seen[0] = cudaMemcpy2D(ints.data, 4, &value, 8, 8, 1, cudaMemcpyHostToDevice);
  seen[1] = cudaFree(&value);
  seen[2] = cudaFree(nullptr);
  cudaGetLastError();
  return cudaSuccess;
}

// ---- Launches -------------------------------------------------------------------------------------

HOST_TEST(dynamic_shared_memory_must_be_asked_for) {
  DeviceInts ints;
  constexpr int kLarge = 64 * 1024;
  constexpr auto kAttribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  use_dynamic_shared<<<1, 1, kLarge>>>(ints.data, kLarge / 4 - 1);
  seen[0] = cudaPeekAtLastError();
  seen[1] = cudaGetLastError();
  seen[2] = cudaGetLastError();
  seen[3] = cudaFuncSetAttribute(use_dynamic_shared, kAttribute, 228 * 1024);
  cudaGetLastError();
  seen[4] = cudaFuncSetAttribute(use_dynamic_shared, kAttribute, kLarge);
  use_dynamic_shared<<<1, 1, kLarge>>>(ints.data, kLarge / 4 - 1);
  seen[5] = cudaGetLastError();
  seen[6] = ints.first();
  return cudaFuncSetAttribute(use_dynamic_shared, kAttribute, 48 * 1024);
}

// All of its blocks are resident, as many as fit on the device.
HOST_TEST(cooperative_launch) {
  constexpr int kThreads = 1024;
  DeviceInts ints;
  int per_sm = 0, sms = 0;
  REQUIRE(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, meet, kThreads, 0));
  REQUIRE(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
  int const blocks = per_sm * sms;
  void* arguments[] = {&ints.data};
  auto const* const function = reinterpret_cast<void const*>(&meet);
  REQUIRE(
      cudaLaunchCooperativeKernel(function, dim3(blocks), dim3(kThreads), arguments, 0, nullptr));
  int counts[2];
  REQUIRE(cudaMemcpy(counts, ints.data, sizeof counts, cudaMemcpyDeviceToHost));
  seen[0] = counts[0] == blocks;
  seen[1] = counts[1] == blocks;
  return cudaSuccess;
}

// A dependent launch runs beside the one before it, up to its wait.
HOST_TEST(dependent_launches_overlap) {
  DeviceInts ints;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = config.blockDim = dim3(1);
  config.attrs = &attribute;
  config.numAttrs = 1;
  trigger_and_listen<<<1, 1>>>(ints.data);
  REQUIRE(cudaLaunchKernelEx(&config, speak_before_the_wait, ints.data));
  return cudaMemcpy(seen, ints.data, 3 * sizeof(int), cudaMemcpyDeviceToHost);
}

HOST_TEST(what_no_gpu_launches) {
  DeviceInts ints;
  add<<<1, 1025>>>(ints.data, 1);
  seen[0] = cudaGetLastError();
  add<<<0, 32>>>(ints.data, 1);
  seen[1] = cudaGetLastError();
  int value = 1;
  void* arguments[] = {&ints.data, &value};
  auto const* const function = reinterpret_cast<void const*>(&add);
  seen[2] = cudaLaunchCooperativeKernel(function, dim3(100000), dim3(1024), arguments, 0, nullptr);
  cudaGetLastError();
  seen[3] = ints.first();
  return cudaSuccess;
}

HOST_TEST(function_attributes_and_occupancy) {
  DeviceInts ints;
  use_static_shared<<<1, kCount>>>(ints.data);
  seen[0] = ints.first();
  cudaFuncAttributes attributes;
  REQUIRE(cudaFuncGetAttributes(&attributes, use_static_shared));
  seen[1] = int(attributes.sharedSizeBytes);
  seen[2] = attributes.maxThreadsPerBlock;
  REQUIRE(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&seen[3], add, 1024, 0));
  REQUIRE(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&seen[4], add, 32, 40 * 1024));
  REQUIRE(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&seen[5], add, 32, 0));
  return cudaSuccess;
}

HOST_TEST(device_and_driver) {
  REQUIRE(cudaGetDeviceCount(&seen[0]));
  REQUIRE(cudaDeviceGetAttribute(&seen[1], cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  REQUIRE(cudaDeviceGetAttribute(&seen[2], cudaDevAttrComputeCapabilityMajor, 0));
  cudaDeviceProp properties;
  REQUIRE(cudaGetDeviceProperties(&properties, 0));
  seen[3] = int(properties.sharedMemPerBlockOptin);
  void* encode = nullptr;
  cudaDriverEntryPointQueryResult found;
  REQUIRE(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000,
                                           cudaEnableDefault, &found));
  seen[4] = found == cudaDriverEntryPointSuccess && encode != nullptr;
  seen[5] = cudaSetDevice(99999);
  cudaGetLastError();
  return cudaSuccess;
}

// ---- Graphs ---------------------------------------------------------------------------------------

// A fill, a kernel and a copy. Parameters are those of the capture, contents those of the replay.
HOST_TEST(replays_a_captured_stream) {
  DeviceInts a, b;
  Stream stream;
  int value = 7;
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  REQUIRE(cudaMemsetAsync(b.data, 0, kBytes, stream));
  add<<<1, kCount, 0, stream>>>(a.data, value);
  REQUIRE(cudaMemcpyAsync(b.data, a.data, kBytes / 2, cudaMemcpyDeviceToDevice, stream));
  value = 1000;
  cudaStreamCaptureStatus capturing;
  REQUIRE(cudaStreamIsCapturing(stream, &capturing));
  seen[0] = capturing == cudaStreamCaptureStatusActive;
  cudaGraph_t graph = nullptr;
  REQUIRE(cudaStreamEndCapture(stream, &graph));
  seen[1] = a.first();
  size_t num_nodes = 0;
  REQUIRE(cudaGraphGetNodes(graph, nullptr, &num_nodes));
  seen[2] = int(num_nodes);

  cudaGraphExec_t executable = nullptr;
  REQUIRE(cudaGraphInstantiate(&executable, graph, 0));
  REQUIRE(cudaGraphDestroy(graph));
  REQUIRE(cudaGraphLaunch(executable, stream));
  REQUIRE(cudaGraphLaunch(executable, stream));
  REQUIRE(cudaStreamSynchronize(stream));
  seen[3] = a.first();
  seen[4] = b.first();
  REQUIRE(cudaMemcpy(&seen[5], b.data + kCount / 2, sizeof(int), cudaMemcpyDeviceToHost));
  return cudaGraphExecDestroy(executable);
}

namespace {

// The error of `call` in a capture, and that of the capture's end.
template <class Call>
void call_in_capture(Stream const& stream, int* seen, Call call,
                     cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal) {
  cudaStreamBeginCapture(stream, mode);
  seen[0] = call();
  cudaGraph_t graph = nullptr;
  seen[1] = cudaStreamEndCapture(stream, &graph);
  if (graph != nullptr) {
    cudaGraphDestroy(graph);
  }
  cudaGetLastError();
}

}  // namespace

HOST_TEST(what_no_capture_allows) {
  DeviceInts ints;
  Stream stream, blocking(cudaStreamDefault);
  void* memory = nullptr;
  cudaEvent_t event = nullptr;
  REQUIRE(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  call_in_capture(stream, seen, [&] { return cudaMalloc(&memory, 16); });
  call_in_capture(stream, seen + 2, [&] { return cudaStreamSynchronize(stream); });
  call_in_capture(stream, seen + 4, [&] { return cudaDeviceSynchronize(); });
  call_in_capture(blocking, seen + 6, [&] {
    add<<<1, kCount>>>(ints.data, 1);
    return cudaGetLastError();
  });
  call_in_capture(stream, seen + 8, [&] {
    cudaEventRecord(event, stream);
    return cudaEventQuery(event);
  });
  seen[10] = cudaStreamBeginCapture(cudaStreamLegacy, cudaStreamCaptureModeGlobal);
  cudaGetLastError();
  return cudaEventDestroy(event);
}

HOST_TEST(what_a_relaxed_capture_allows) {
  Stream stream;
  void* memory = nullptr;
  auto const mode = cudaStreamCaptureModeRelaxed;
  call_in_capture(stream, seen, [&] { return cudaMalloc(&memory, 16); }, mode);
  call_in_capture(stream, seen + 2, [&] { return cudaDeviceSynchronize(); }, mode);
  return cudaFree(memory);
}

// ---- Errors that only the emulator survives -------------------------------------------------------

HOST_TEST(writes_past_an_allocation) {
  DeviceInts ints;
  add<<<1, kCount + 1>>>(ints.data, 1);
  seen[0] = cudaDeviceSynchronize();
  seen[1] = cudaDeviceSynchronize();
  seen[2] = cudaGetLastError();
  return cudaSuccess;
}

HOST_TEST(copies_past_an_allocation) {
  DeviceInts ints;
  int host[kCount + 1] = {};
  seen[0] = cudaMemcpy(ints.data, host, sizeof host, cudaMemcpyHostToDevice);
  return cudaSuccess;
}

HOST_TEST(reads_what_nobody_wrote) {
  int *from = nullptr, *to = nullptr;
  cudaMalloc(&from, 2 * kBytes);
  cudaMalloc(&to, 2 * kBytes);
  cudaMemset(from, 0, kBytes);
  cudaMemcpy(to, from, 2 * kBytes, cudaMemcpyDeviceToDevice);  // is no use of it yet
  add<<<1, kCount>>>(to, 1);
  add<<<1, kCount>>>(to + kCount, 1);
  cudaFree(from);
  return cudaFree(to);
}

HOST_TEST(asks_for_what_is_not_emulated) {
  DeviceInts ints;
  int value = 1;
  void* arguments[] = {&ints.data, &value};
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeLaunchCompletionEvent;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(1);
  config.attrs = &attribute;
  config.numAttrs = 1;
  seen[0] = cudaLaunchKernelExC(&config, reinterpret_cast<void const*>(&add), arguments);
  return cudaSuccess;
}
