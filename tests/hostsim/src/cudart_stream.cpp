// The CUDA runtime API: streams and events. All streams are one queue in issue order, so waiting
// for an event has nothing to do.

#include <cuda_runtime_api.h>

#include <memory>

#include "report.h"
#include "runtime.h"

// An event knows only in which capture it was recorded last, 0 for none: there it stands for a node
// of the graph and cannot be waited for.
struct CUevent_st {
  uint64_t capture_id = 0;
};

namespace hostsim {
namespace {

cudaError_t create_stream(cudaStream_t* stream, unsigned flags, int priority) {
  auto made = std::make_unique<CUstream_st>();
  made->flags = flags;
  made->priority = priority;
  *stream = made.release();
  return cudaSuccess;
}

bool is_special(cudaStream_t stream) {
  return is_legacy_stream(stream) || stream == cudaStreamPerThread;
}

// For calls that wait for a stream or ask how far it is: a capture has no such moment.
cudaError_t refuse_if_captured(cudaStream_t stream) {
  if (is_legacy_stream(stream)) {
    return refuse_legacy_while_capturing();
  }
  Capture* const capture = capture_of(stream);
  if (capture == nullptr) {
    return cudaSuccess;
  }
  capture->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

cudaError_t wait_event(cudaStream_t stream, cudaEvent_t event) {
  Capture const* const capture = capture_of(stream);
  if (event->capture_id != 0 && (capture == nullptr || capture->id != event->capture_id)) {
    report("api", "cudaStreamWaitEvent: a capture of more than one stream is not emulated");
    return cudaErrorStreamCaptureUnsupported;
  }
  return cudaSuccess;
}

// The same for events recorded there, whether or not that capture has ended.
cudaError_t refuse_if_captured(CUevent_st const& event) {
  if (event.capture_id == 0) {
    return refuse_while_capturing();
  }
  if (Capture* const capture = find_capture(event.capture_id); capture != nullptr) {
    capture->invalid = true;
  }
  return cudaErrorCapturedEvent;
}

cudaError_t create_event(cudaEvent_t* event) {
  *event = std::make_unique<CUevent_st>().release();
  return cudaSuccess;
}

}  // namespace
}  // namespace hostsim

using hostsim::api;

extern "C" {

// ---- Streams --------------------------------------------------------------------------------------

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return api([&] { return hostsim::create_stream(stream, cudaStreamDefault, 0); });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return api([&] { return hostsim::create_stream(stream, flags, 0); });
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  return api([&] { return hostsim::create_stream(stream, flags, priority); });
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return api([&] {
    if (hostsim::is_special(stream)) {
      return cudaErrorInvalidResourceHandle;
    }
    hostsim::abandon_capture(stream);
    std::unique_ptr<CUstream_st> const owned(stream);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
  *flags = hostsim::is_special(stream) ? unsigned(cudaStreamDefault) : stream->flags;
  return cudaSuccess;
}

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = hostsim::is_special(stream) ? 0 : stream->priority;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return api([&] {
    cudaError_t const status = hostsim::refuse_if_captured(stream);
    return status != cudaSuccess ? status : hostsim::drain();
  });
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return api([&] {
    if (cudaError_t const status = hostsim::refuse_if_captured(stream); status != cudaSuccess) {
      return status;
    }
    return hostsim::machine().queue.empty() ? cudaSuccess : cudaErrorNotReady;
  });
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return api([&] { return hostsim::wait_event(stream, event); });
}

// ---- Events ---------------------------------------------------------------------------------------

cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return api([&] { return hostsim::create_event(event); });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return api([&] { return hostsim::create_event(event); });
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return api([&] {
    std::unique_ptr<CUevent_st> const owned(event);
    return cudaSuccess;
  });
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return api([&] {
    hostsim::Capture const* const capture = hostsim::capture_of(stream);
    event->capture_id = capture != nullptr ? capture->id : 0;
    return cudaSuccess;
  });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return api([&] {
    cudaError_t const status = hostsim::refuse_if_captured(*event);
    return status != cudaSuccess ? status : hostsim::drain();
  });
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  return api([&] {
    if (cudaError_t const status = hostsim::refuse_if_captured(*event); status != cudaSuccess) {
      return status;
    }
    return hostsim::machine().queue.empty() ? cudaSuccess : cudaErrorNotReady;
  });
}

// The emulator has no notion of time.
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 0.0f;
  return cudaSuccess;
}

}  // extern "C"
