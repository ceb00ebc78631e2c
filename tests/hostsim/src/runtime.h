// What the parts of the runtime API share: errors, the operations of a stream, capture.
//
// There is one device, and one queue for all streams: operations run in the order in which the host
// issued them, kernels at the next synchronisation, copies at once. So a dependency between streams
// that the host forgot to state is not seen. One host thread may call at a time.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <variant>
#include <vector>

#include "machine.h"

namespace hostsim {

// ---- Errors ---------------------------------------------------------------------------------------

// What cudaGetLastError() will say. An error of a kernel stays until hostsim_clear().
cudaError_t remember(cudaError_t status);
cudaError_t kernel_error();  // cudaSuccess if no kernel has failed
void set_kernel_error(cudaError_t status);
cudaError_t report_exception(std::exception const& error);

// The body of every API function: fails if a kernel has failed, turns exceptions into errors and
// reports, and remembers the result.
template <class Body>
cudaError_t api(Body&& body) {
  if (kernel_error() != cudaSuccess) {
    return kernel_error();
  }
  try {
    return remember(body());
  } catch (std::exception const& error) {
    return remember(report_exception(error));
  }
}

// Runs all that is queued.
cudaError_t drain();

// ---- Operations of a stream -----------------------------------------------------------------------

struct KernelLaunch {
  Kernel const* kernel = nullptr;
  LaunchConfig config;
  std::vector<char> parameters;
};

struct Copy {
  void* to = nullptr;
  size_t to_pitch = 0;
  void const* from = nullptr;
  size_t from_pitch = 0;
  size_t width = 0;
  size_t height = 1;
  cudaMemcpyKind kind = cudaMemcpyDefault;
};

struct Fill {
  void* to = nullptr;
  size_t pitch = 0;
  int value = 0;
  size_t width = 0;
  size_t height = 1;
};

using Operation = std::variant<KernelLaunch, Copy, Fill>;

// Kernels are queued, the others run after the queue has.
cudaError_t run(Operation const& operation);
cudaError_t run(KernelLaunch const& launch);
cudaError_t run(Copy const& copy);
cudaError_t run(Fill const& fill);

// Runs an operation, or records it if the stream is being captured.
cudaError_t submit(cudaStream_t stream, Operation operation);

// ---- Capture --------------------------------------------------------------------------------------

struct Capture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  uint64_t id = 0;
  bool blocking = true;  // the stream would synchronise with the legacy stream
  bool invalid = false;  // something was called that cannot be captured
  std::unique_ptr<CUgraph_st> graph;
};

// nullptr unless the stream is being captured.
Capture* capture_of(cudaStream_t stream);
Capture* find_capture(uint64_t id);  // nullptr if it has ended

// For calls that a captured graph could not repeat, such as cudaMalloc: while a stream is being
// captured they fail, and so does the capture. A relaxed capture lets them pass unless they wait for
// the captured stream itself.
cudaError_t refuse_while_capturing(bool relaxed_too = false);
// For work of the legacy stream, which would have to wait for blocking streams, of which one is
// being captured.
cudaError_t refuse_legacy_while_capturing();
void abandon_capture(cudaStream_t stream);

bool is_legacy_stream(cudaStream_t stream);

}  // namespace hostsim

struct CUgraphNode_st {
  hostsim::Operation operation;
};

// Nodes in the order of their capture, which is also the order of their replay.
struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
};

struct CUgraphExec_st {
  std::vector<hostsim::Operation> operations;
};

struct CUstream_st {
  unsigned flags = cudaStreamDefault;
  int priority = 0;
  std::unique_ptr<hostsim::Capture> capture;
};
