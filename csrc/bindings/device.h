// The device that the host layer works for: CUDA; or, with P_EAGLE_EMULATED, the emulator of
// tests/hostsim, whose memory is the CPU's. Tests build that second library from the same sources,
// so that without a GPU they run the same checks and the same kernels.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <string>

namespace p_eagle {

using torch::stable::Tensor;

#ifdef P_EAGLE_EMULATED

#define P_EAGLE_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(p_eagle_sim, CPU, m)

extern "C" void* hostsim_current_stream();

inline constexpr char const* kDevice = "the CPU, for the emulator";

inline bool is_on_device(Tensor const& tensor) { return tensor.is_cpu(); }

inline std::string device_name(int32_t) { return "cpu"; }

inline int cuda_device(int32_t) { return 0; }

inline cudaStream_t current_stream(char const*, int32_t) {
  return static_cast<cudaStream_t>(hostsim_current_stream());
}

struct DeviceGuard {
  explicit DeviceGuard(int32_t) {}
};

#else

#define P_EAGLE_LIBRARY_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(p_eagle, CUDA, m)

// Defined in libtorch_cuda.so, which libtorch.so brings along where torch has CUDA. Weak, and so
// null in a CPU-only torch, into which this library must load too.
extern "C" [[gnu::weak]] AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device,
                                                                           void** stream);

inline constexpr char const* kDevice = "a CUDA device";

inline bool is_on_device(Tensor const& tensor) { return tensor.is_cuda(); }

inline std::string device_name(int32_t index) { return "cuda:" + std::to_string(index); }

inline int cuda_device(int32_t index) { return index; }

inline cudaStream_t current_stream(char const* op, int32_t device) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, op,
                  ": this torch is built without CUDA");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

using torch::stable::accelerator::DeviceGuard;

#endif

}  // namespace p_eagle
