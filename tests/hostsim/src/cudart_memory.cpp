// The CUDA runtime API: allocations, copies and fills. Device memory is host memory that is
// registered as a buffer, so kernels and copies are held to its bounds.

#include <cuda_runtime_api.h>

#include <cstring>
#include <map>
#include <stdexcept>

#include "fatbin.h"
#include "report.h"
#include "runtime.h"

namespace hostsim {
namespace {

// ---- Allocation -------------------------------------------------------------------------------------

constexpr size_t kAlignment = 256;
constexpr size_t kRedZoneBytes = 4096;  // on either side; not part of the buffer
constexpr int kPoison = 0xff;           // NaN in every floating-point format

// What cudaMalloc returned, and the block around it that has the red zones.
std::map<void*, char*>& allocations() {
  static std::map<void*, char*> map;
  return map;
}

// `host_writes`: the host can write there without telling, so all of it counts as initialised.
cudaError_t allocate(void** result, size_t size, bool host_writes) {
  if (cudaError_t const status = refuse_while_capturing(); status != cudaSuccess) {
    return status;
  }
  if (size == 0) {
    *result = nullptr;
    return cudaSuccess;
  }
  size_t const total = (size + 2 * kRedZoneBytes + kAlignment - 1) / kAlignment * kAlignment;
  auto* const block = static_cast<char*>(std::aligned_alloc(kAlignment, total));
  if (block == nullptr) {
    return cudaErrorMemoryAllocation;
  }
  std::memset(block, kPoison, total);
  static int serial = 0;
  *result = block + kRedZoneBytes;
  allocations()[*result] = block;
  register_buffer("cudaMalloc#" + std::to_string(serial++), *result, size, false, host_writes);
  return cudaSuccess;
}

cudaError_t release(void* memory) {
  if (cudaError_t const status = refuse_while_capturing(); status != cudaSuccess) {
    return status;
  }
  if (memory == nullptr) {
    return cudaSuccess;
  }
  auto const found = allocations().find(memory);
  if (found == allocations().end()) {
    return cudaErrorInvalidValue;
  }
  cudaError_t const status = drain();
  unregister_buffer(memory);
  std::free(found->second);
  allocations().erase(found);
  return status;
}

// A GPU would make a memory node of it.
cudaError_t refuse_in_captured(cudaStream_t stream, char const* call) {
  Capture* const capture = capture_of(stream);
  if (capture == nullptr) {
    return cudaSuccess;
  }
  report("api", "%s in a captured stream is not emulated", call);
  capture->invalid = true;
  return cudaErrorStreamCaptureUnsupported;
}

// ---- Copies and fills -------------------------------------------------------------------------------

size_t span(size_t pitch, size_t width, size_t height) { return pitch * (height - 1) + width; }

// Requires that a range lies in the buffer where it starts, if it starts in one.
cudaError_t check_range(void const* start, size_t size, bool must_be_device, char const* what) {
  auto const address = reinterpret_cast<uint64_t>(start);
  Buffer const* const buffer = find_buffer(address);
  if (buffer == nullptr) {
    if (must_be_device) {
      report("api", "%s: %p is no device memory", what, start);
      return cudaErrorInvalidValue;
    }
    return cudaSuccess;
  }
  size_t const offset = address - reinterpret_cast<uint64_t>(buffer->data);
  if (offset + size > buffer->size) {
    report("memory", "%s: %zu bytes at offset %zu of '%s', which has %zu", what, size, offset,
           buffer->name.c_str(), buffer->size);
    return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

// Whether `size` bytes there have been written, as far as anyone knows.
bool is_initialized(void const* start, size_t size) {
  auto const address = reinterpret_cast<uint64_t>(start);
  Buffer const* const buffer = find_buffer(address);
  if (buffer == nullptr || buffer->initialized.empty()) {
    return true;
  }
  size_t const offset = address - reinterpret_cast<uint64_t>(buffer->data);
  return std::memchr(&buffer->initialized[offset], 0, size) == nullptr;
}

void copy_row(char* to, char const* from, size_t width) {
  std::memmove(to, from, width);
  if (is_initialized(from, width)) {
    mark_initialized(to, width);
    return;
  }
  for (size_t i = 0; i < width; ++i) {
    if (is_initialized(from + i, 1)) {
      mark_initialized(to + i, 1);
    }
  }
}

// Calls without a stream wait for their end; they are work of the legacy stream.
cudaError_t submit_and_wait(Operation operation) {
  if (cudaError_t const status = refuse_while_capturing(); status != cudaSuccess) {
    return status;
  }
  return submit(cudaStreamLegacy, std::move(operation));
}

Copy flat_copy(void* to, void const* from, size_t size, cudaMemcpyKind kind) {
  return {to, size, from, size, size, 1, kind};
}

// ---- Symbols ----------------------------------------------------------------------------------------

GlobalVariable& require_variable(void const* symbol) {
  GlobalVariable* const found = find_variable(symbol);
  if (found == nullptr) {
    throw std::runtime_error("the symbol is no __device__ or __constant__ variable");
  }
  return *found;
}

// Where `size` bytes at `offset` of a variable are.
char* inside(void const* symbol, size_t size, size_t offset) {
  GlobalVariable& variable = require_variable(symbol);
  if (offset + size > variable.size) {
    throw std::runtime_error(std::to_string(size) + " bytes at offset " + std::to_string(offset) +
                             " of variable " + variable.name + ", which has " +
                             std::to_string(variable.size));
  }
  return variable.data.get() + offset;
}

}  // namespace

cudaError_t run(Copy const& copy) {
  if (copy.width == 0 || copy.height == 0) {
    return cudaSuccess;
  }
  if (copy.to_pitch < copy.width || copy.from_pitch < copy.width) {
    return cudaErrorInvalidPitchValue;
  }
  bool const to_device =
      copy.kind == cudaMemcpyHostToDevice || copy.kind == cudaMemcpyDeviceToDevice;
  bool const from_device =
      copy.kind == cudaMemcpyDeviceToHost || copy.kind == cudaMemcpyDeviceToDevice;
  size_t const to_size = span(copy.to_pitch, copy.width, copy.height);
  size_t const from_size = span(copy.from_pitch, copy.width, copy.height);
  cudaError_t status = drain();
  if (status == cudaSuccess) {
    status = check_range(copy.to, to_size, to_device, "copy to");
  }
  if (status == cudaSuccess) {
    status = check_range(copy.from, from_size, from_device, "copy from");
  }
  for (size_t row = 0; status == cudaSuccess && row < copy.height; ++row) {
    copy_row(static_cast<char*>(copy.to) + row * copy.to_pitch,
             static_cast<char const*>(copy.from) + row * copy.from_pitch, copy.width);
  }
  return status;
}

cudaError_t run(Fill const& fill) {
  if (fill.width == 0 || fill.height == 0) {
    return cudaSuccess;
  }
  if (fill.pitch < fill.width) {
    return cudaErrorInvalidPitchValue;
  }
  cudaError_t status = drain();
  if (status == cudaSuccess) {
    status = check_range(fill.to, span(fill.pitch, fill.width, fill.height), true, "memset");
  }
  for (size_t row = 0; status == cudaSuccess && row < fill.height; ++row) {
    char* const to = static_cast<char*>(fill.to) + row * fill.pitch;
    std::memset(to, fill.value, fill.width);
    mark_initialized(to, fill.width);
  }
  return status;
}

}  // namespace hostsim

using hostsim::api;

extern "C" {

// ---- Allocation -----------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** memory, size_t size) {
  return api([&] { return hostsim::allocate(memory, size, false); });
}

cudaError_t cudaMallocAsync(void** memory, size_t size, cudaStream_t stream) {
  return api([&] {
    cudaError_t const status = hostsim::refuse_in_captured(stream, "cudaMallocAsync");
    return status != cudaSuccess ? status : hostsim::allocate(memory, size, false);
  });
}

cudaError_t cudaMallocHost(void** memory, size_t size) {
  return api([&] { return hostsim::allocate(memory, size, true); });
}

cudaError_t cudaHostAlloc(void** memory, size_t size, unsigned) {
  return cudaMallocHost(memory, size);
}

cudaError_t cudaMallocManaged(void** memory, size_t size, unsigned) {
  return cudaMallocHost(memory, size);
}

cudaError_t cudaFree(void* memory) {
  return api([&] { return hostsim::release(memory); });
}

cudaError_t cudaFreeAsync(void* memory, cudaStream_t stream) {
  return api([&] {
    cudaError_t const status = hostsim::refuse_in_captured(stream, "cudaFreeAsync");
    return status != cudaSuccess ? status : hostsim::release(memory);
  });
}

cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }

// ---- Copies ---------------------------------------------------------------------------------------

cudaError_t cudaMemcpyAsync(void* to, void const* from, size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  return api([&] { return hostsim::submit(stream, hostsim::flat_copy(to, from, size, kind)); });
}

cudaError_t cudaMemcpy(void* to, void const* from, size_t size, cudaMemcpyKind kind) {
  return api([&] { return hostsim::submit_and_wait(hostsim::flat_copy(to, from, size, kind)); });
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, void const* from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  return api([&] {
    return hostsim::submit(stream,
                           hostsim::Copy{to, to_pitch, from, from_pitch, width, height, kind});
  });
}

cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, void const* from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind kind) {
  return api([&] {
    return hostsim::submit_and_wait(
        hostsim::Copy{to, to_pitch, from, from_pitch, width, height, kind});
  });
}

// ---- Fills ----------------------------------------------------------------------------------------

cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  return api([&] { return hostsim::submit(stream, hostsim::Fill{to, size, value, size}); });
}

cudaError_t cudaMemset(void* to, int value, size_t size) {
  return api([&] { return hostsim::submit_and_wait(hostsim::Fill{to, size, value, size}); });
}

cudaError_t cudaMemset2DAsync(void* to, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t stream) {
  return api(
      [&] { return hostsim::submit(stream, hostsim::Fill{to, pitch, value, width, height}); });
}

cudaError_t cudaMemset2D(void* to, size_t pitch, int value, size_t width, size_t height) {
  return api(
      [&] { return hostsim::submit_and_wait(hostsim::Fill{to, pitch, value, width, height}); });
}

// ---- Symbols --------------------------------------------------------------------------------------

cudaError_t cudaGetSymbolAddress(void** address, void const* symbol) {
  return api([&] {
    *address = hostsim::require_variable(symbol).data.get();
    return cudaSuccess;
  });
}

cudaError_t cudaGetSymbolSize(size_t* size, void const* symbol) {
  return api([&] {
    *size = hostsim::require_variable(symbol).size;
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyToSymbolAsync(void const* symbol, void const* from, size_t size,
                                    size_t offset, cudaMemcpyKind kind, cudaStream_t stream) {
  return api([&] {
    char* const to = hostsim::inside(symbol, size, offset);
    return hostsim::submit(stream, hostsim::flat_copy(to, from, size, kind));
  });
}

cudaError_t cudaMemcpyToSymbol(void const* symbol, void const* from, size_t size, size_t offset,
                               cudaMemcpyKind kind) {
  return api([&] {
    char* const to = hostsim::inside(symbol, size, offset);
    return hostsim::submit_and_wait(hostsim::flat_copy(to, from, size, kind));
  });
}

cudaError_t cudaMemcpyFromSymbolAsync(void* to, void const* symbol, size_t size, size_t offset,
                                      cudaMemcpyKind kind, cudaStream_t stream) {
  return api([&] {
    char const* const from = hostsim::inside(symbol, size, offset);
    return hostsim::submit(stream, hostsim::flat_copy(to, from, size, kind));
  });
}

cudaError_t cudaMemcpyFromSymbol(void* to, void const* symbol, size_t size, size_t offset,
                                 cudaMemcpyKind kind) {
  return api([&] {
    char const* const from = hostsim::inside(symbol, size, offset);
    return hostsim::submit_and_wait(hostsim::flat_copy(to, from, size, kind));
  });
}

}  // extern "C"
