// Three launches in a row, of which each may begin before the one before it has ended. What the last
// one may read depends on who has executed griddepcontrol.wait.
#include "conformance.cuh"

#define HOST_TEST(name) extern "C" __attribute__((visibility("default"))) int name(int* seen)

#define REQUIRE(call)                                             \
  if (cudaError_t const status = (call); status != cudaSuccess) { \
    return status;                                                \
  }

namespace {

constexpr int kThreads = 64;

enum class Waits { kNobody, kEverybody, kFirstBlock, kFirstThread, kFirstThreadThenBarrier };

__device__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Triggers at once, so that the next launch may begin.
__device__ void wait(Waits who) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  if (who == Waits::kEverybody || (who == Waits::kFirstBlock && blockIdx.x == 0)) {
    wait_for_previous();
  }
  if (who == Waits::kFirstThread || who == Waits::kFirstThreadThenBarrier) {
    if (threadIdx.x == 0) {
      wait_for_previous();
    }
  }
  if (who == Waits::kFirstThreadThenBarrier) {
    __syncthreads();
  }
}

__global__ void write(int* to, int value, Waits who) {
  wait(who);
  to[blockIdx.x * kThreads + threadIdx.x] = value;
}

__global__ void read(int const* from, int* to, Waits who) {
  wait(who);
  // Not as constant data, of which there would be a copy from before.
  to[threadIdx.x] = static_cast<int const volatile*>(from)[threadIdx.x] + 1;
}

// All warps of one block trigger. The second block listens for the next launch: out[1] is whether it
// has begun. The first one stays as long, if it has triggered.
__global__ void trigger_and_listen(int* out, int triggering_block) {
  if (int(blockIdx.x) == triggering_block) {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  }
  if (threadIdx.x == 0 && (blockIdx.x == 1 || triggering_block == 0)) {
    int said = 0;
    for (int tries = 0; tries < 300 && said == 0; ++tries) {
      asm volatile("ld.relaxed.gpu.global.b32 %0, [%1];" : "=r"(said) : "l"(out) : "memory");
    }
    if (blockIdx.x == 1) {
      out[1] = said;
    }
  }
}

__global__ void speak(int* out) {
  asm volatile("st.relaxed.gpu.global.b32 [%0], 1;" ::"l"(out) : "memory");
  wait_for_previous();
}

template <class... Parameters>
cudaError_t launch(cudaStream_t stream, void (*kernel)(Parameters...), int blocks, bool overlaps,
                   Parameters... parameters) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = overlaps;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, parameters...);
}

struct Chain {
  Waits second = Waits::kEverybody;
  bool second_overlaps = true;
  Waits third = Waits::kEverybody;
  bool third_overlaps = true;
  bool reads_second = false;  // what the second launch writes, not what the first one does
};

// seen[0]: the smallest, seen[1]: the largest of what the third launch has written.
int run(Chain const& chain, int* seen) {
  int* memory = nullptr;
  REQUIRE(cudaMalloc(&memory, 4 * kThreads * sizeof(int)));
  REQUIRE(cudaMemset(memory, 0, 4 * kThreads * sizeof(int)));
  int *const first = memory, *const second = first + kThreads, *const third = second + 2 * kThreads;
  REQUIRE(launch(nullptr, write, 1, false, first, 10, Waits::kNobody));
  REQUIRE(launch(nullptr, write, 2, chain.second_overlaps, second, 20, chain.second));
  REQUIRE(launch(nullptr, read, 1, chain.third_overlaps,
                 static_cast<int const*>(chain.reads_second ? second : first), third, chain.third));
  int results[kThreads];
  REQUIRE(cudaMemcpy(results, third, sizeof results, cudaMemcpyDeviceToHost));
  seen[0] = seen[1] = results[0];
  for (int const result : results) {
    seen[0] = result < seen[0] ? result : seen[0];
    seen[1] = result > seen[1] ? result : seen[1];
  }
  return cudaFree(memory);
}

}  // namespace

// ---- What is right --------------------------------------------------------------------------------

HOST_TEST(everybody_waits) { return run({}, seen); }

HOST_TEST(one_thread_waits_for_its_block) {
  return run({.third = Waits::kFirstThreadThenBarrier}, seen);
}

HOST_TEST(the_second_waits_for_nobody_but_begins_last) {
  return run({.second = Waits::kNobody, .second_overlaps = false}, seen);
}

HOST_TEST(the_first_has_ended_before) {
  return run({.second_overlaps = false, .third = Waits::kNobody}, seen);
}

HOST_TEST(the_third_does_not_overlap) {
  return run({.second = Waits::kNobody, .third = Waits::kNobody, .third_overlaps = false}, seen);
}

HOST_TEST(the_last_result_after_a_wait) {
  return run({.second = Waits::kNobody, .reads_second = true}, seen);
}

namespace {

int listen(int triggering_block, int* seen) {
  int* memory = nullptr;
  REQUIRE(cudaMalloc(&memory, 2 * sizeof(int)));
  REQUIRE(cudaMemset(memory, 0, 2 * sizeof(int)));
  REQUIRE(launch(nullptr, trigger_and_listen, 2, false, memory, triggering_block));
  REQUIRE(launch(nullptr, speak, 1, true, memory));
  REQUIRE(cudaMemcpy(seen, memory, 2 * sizeof(int), cudaMemcpyDeviceToHost));
  return cudaFree(memory);
}

}  // namespace

// A launch begins when all blocks of the one before have triggered or left, not before.
HOST_TEST(not_all_blocks_have_triggered) { return listen(0, seen); }
HOST_TEST(one_block_has_triggered_and_one_has_left) { return listen(1, seen); }

// The first kernel of a graph depends on all that was before, whatever its launch said.
HOST_TEST(replayed_twice) {
  int* memory = nullptr;
  REQUIRE(cudaMalloc(&memory, 2 * kThreads * sizeof(int)));
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  REQUIRE(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  REQUIRE(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  REQUIRE(launch(stream, write, 1, true, memory, 10, Waits::kNobody));
  REQUIRE(launch(stream, read, 1, true, static_cast<int const*>(memory), memory + kThreads,
                 Waits::kEverybody));
  REQUIRE(cudaStreamEndCapture(stream, &graph));
  REQUIRE(cudaGraphInstantiate(&executable, graph, 0));
  REQUIRE(cudaGraphLaunch(executable, stream));
  REQUIRE(cudaGraphLaunch(executable, stream));
  REQUIRE(cudaStreamSynchronize(stream));
  REQUIRE(cudaMemcpy(seen, memory + kThreads, sizeof(int), cudaMemcpyDeviceToHost));
  REQUIRE(cudaGraphExecDestroy(executable));
  REQUIRE(cudaGraphDestroy(graph));
  REQUIRE(cudaStreamDestroy(stream));
  return cudaFree(memory);
}

// ---- What is not ----------------------------------------------------------------------------------

HOST_TEST(nobody_waits) { return run({.third = Waits::kNobody}, seen); }

HOST_TEST(nobody_waits_for_the_last_result) {
  return run({.second_overlaps = false, .third = Waits::kNobody, .reads_second = true}, seen);
}

HOST_TEST(one_thread_waits_for_itself) { return run({.third = Waits::kFirstThread}, seen); }

// The third waits for the second, which may end before the first.
HOST_TEST(the_second_does_not_wait) { return run({.second = Waits::kNobody}, seen); }

HOST_TEST(a_block_of_the_second_does_not_wait) { return run({.second = Waits::kFirstBlock}, seen); }
