// The CUDA runtime API: capture of a stream and replay as a graph. A captured stream runs nothing;
// what is issued becomes nodes, parameters copied. Graphs are a sequence, as captured.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>

#include "report.h"
#include "runtime.h"

namespace hostsim {
namespace {

std::vector<Capture*>& captures() {
  static std::vector<Capture*> list;
  return list;
}

cudaError_t begin_capture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  if (is_legacy_stream(stream)) {
    return cudaErrorStreamCaptureUnsupported;
  }
  if (stream == cudaStreamPerThread) {
    report("api", "a capture of cudaStreamPerThread is not emulated");
    return cudaErrorNotSupported;
  }
  if (stream->capture != nullptr) {
    return cudaErrorIllegalState;
  }
  static uint64_t serial = 0;
  stream->capture = std::make_unique<Capture>();
  stream->capture->mode = mode;
  stream->capture->id = ++serial;
  stream->capture->blocking = (stream->flags & cudaStreamNonBlocking) == 0;
  stream->capture->graph = std::make_unique<CUgraph_st>();
  captures().push_back(stream->capture.get());
  return cudaSuccess;
}

cudaError_t end_capture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (capture_of(stream) == nullptr) {
    return cudaErrorIllegalState;
  }
  std::unique_ptr<Capture> const capture = std::move(stream->capture);
  std::erase(captures(), capture.get());
  if (capture->invalid) {
    return cudaErrorStreamCaptureInvalidated;
  }
  *graph = capture->graph.release();
  return cudaSuccess;
}

cudaStreamCaptureStatus capture_status(cudaStream_t stream) {
  Capture const* const capture = capture_of(stream);
  if (capture == nullptr) {
    return cudaStreamCaptureStatusNone;
  }
  return capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
}

cudaError_t instantiate(cudaGraphExec_t* executable, CUgraph_st const& graph) {
  auto made = std::make_unique<CUgraphExec_st>();
  for (auto const& node : graph.nodes) {
    made->operations.push_back(node->operation);
  }
  // Programmatic dependencies exist between a kernel and the kernel before it in the graph only.
  bool after_kernel = false;
  for (Operation& operation : made->operations) {
    auto* const launch = std::get_if<KernelLaunch>(&operation);
    if (launch != nullptr) {
      launch->config.overlaps_previous &= after_kernel;
    }
    after_kernel = launch != nullptr;
  }
  *executable = made.release();
  return cudaSuccess;
}

cudaError_t replay(CUgraphExec_st const& executable, cudaStream_t stream) {
  if (capture_of(stream) != nullptr) {
    report("api", "cudaGraphLaunch: a graph within a graph is not emulated");
    return cudaErrorStreamCaptureUnsupported;
  }
  for (Operation const& operation : executable.operations) {
    if (cudaError_t const status = run(operation); status != cudaSuccess) {
      return status;
    }
  }
  return cudaSuccess;
}

cudaError_t list_nodes(CUgraph_st const& graph, cudaGraphNode_t* nodes, size_t* count) {
  if (nodes == nullptr) {
    *count = graph.nodes.size();
    return cudaSuccess;
  }
  size_t const wanted = std::exchange(*count, std::min(*count, graph.nodes.size()));
  for (size_t i = 0; i < wanted; ++i) {
    nodes[i] = i < graph.nodes.size() ? graph.nodes[i].get() : nullptr;
  }
  return cudaSuccess;
}

cudaGraphNodeType type_of(CUgraphNode_st const& node) {
  if (std::holds_alternative<KernelLaunch>(node.operation)) {
    return cudaGraphNodeTypeKernel;
  }
  return std::holds_alternative<Copy>(node.operation) ? cudaGraphNodeTypeMemcpy
                                                      : cudaGraphNodeTypeMemset;
}

}  // namespace

bool is_legacy_stream(cudaStream_t stream) {
  return stream == nullptr || stream == cudaStreamLegacy;
}

Capture* capture_of(cudaStream_t stream) {
  bool const special = is_legacy_stream(stream) || stream == cudaStreamPerThread;
  return special ? nullptr : stream->capture.get();
}

Capture* find_capture(uint64_t id) {
  auto const has_id = [&](Capture const* capture) { return capture->id == id; };
  auto const found = std::ranges::find_if(captures(), has_id);
  return found != captures().end() ? *found : nullptr;
}

void abandon_capture(cudaStream_t stream) {
  if (Capture* const capture = capture_of(stream); capture != nullptr) {
    std::erase(captures(), capture);
    stream->capture.reset();
  }
}

cudaError_t refuse_while_capturing(bool relaxed_too) {
  cudaError_t status = cudaSuccess;
  for (Capture* const capture : captures()) {
    if (relaxed_too || capture->mode != cudaStreamCaptureModeRelaxed) {
      capture->invalid = true;
      status = cudaErrorStreamCaptureUnsupported;
    }
  }
  return status;
}

cudaError_t refuse_legacy_while_capturing() {
  for (Capture* const capture : captures()) {
    if (capture->blocking) {
      capture->invalid = true;
      return cudaErrorStreamCaptureImplicit;
    }
  }
  return cudaSuccess;
}

cudaError_t run(Operation const& operation) {
  return std::visit([](auto const& concrete) { return run(concrete); }, operation);
}

cudaError_t submit(cudaStream_t stream, Operation operation) {
  Capture* const capture = capture_of(stream);
  if (capture == nullptr) {
    cudaError_t const status =
        is_legacy_stream(stream) ? refuse_legacy_while_capturing() : cudaSuccess;
    return status != cudaSuccess ? status : run(operation);
  }
  if (capture->invalid) {
    return cudaErrorStreamCaptureInvalidated;
  }
  capture->graph->nodes.push_back(
      std::make_unique<CUgraphNode_st>(CUgraphNode_st{std::move(operation)}));
  return cudaSuccess;
}

}  // namespace hostsim

using hostsim::api;

extern "C" {

// ---- Capture --------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  return api([&] { return hostsim::begin_capture(stream, mode); });
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return api([&] { return hostsim::end_capture(stream, graph); });
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  return api([&] {
    *status = hostsim::capture_status(stream);
    return cudaSuccess;
  });
}

#if CUDART_VERSION >= 13000
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     cudaGraphNode_t const** dependencies,
                                     cudaGraphEdgeData const** edges, size_t* num_dependencies) {
  return api([&] {
    *status = hostsim::capture_status(stream);
    hostsim::Capture const* const capture = hostsim::capture_of(stream);
    if (id != nullptr && capture != nullptr) {
      *id = capture->id;
    }
    if (graph != nullptr || dependencies != nullptr || edges != nullptr ||
        num_dependencies != nullptr) {
      hostsim::report("api", "cudaStreamGetCaptureInfo: only status and id are emulated");
      return cudaErrorNotSupported;
    }
    return cudaSuccess;
  });
}
#endif

// ---- Graphs ---------------------------------------------------------------------------------------

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  return api([&] {
    *graph = std::make_unique<CUgraph_st>().release();
    return cudaSuccess;
  });
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  return api([&] {
    std::unique_ptr<CUgraph_st> const owned(graph);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  return api([&] { return hostsim::list_nodes(*graph, nodes, count); });
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  return api([&] {
    *type = hostsim::type_of(*node);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  return api([&] { return hostsim::instantiate(executable, *graph); });
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long) {
  return api([&] { return hostsim::instantiate(executable, *graph); });
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) {
  return api([] { return cudaSuccess; });
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  return api([&] { return hostsim::replay(*executable, stream); });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  return api([&] {
    std::unique_ptr<CUgraphExec_st> const owned(executable);
    return cudaSuccess;
  });
}

}  // extern "C"
