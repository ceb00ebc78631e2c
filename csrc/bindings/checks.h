// Argument checks for the host layer. A message names the op, the argument, what was expected and
// what came; the caller should not need a debugger to find which of twelve tensors was wrong.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>
#include <string>

#include "bindings/device.h"
#include "ops.h"

namespace p_eagle {

using torch::headeronly::ScalarType;

struct Shape {
  std::span<int64_t const> sizes;

  friend std::ostream& operator<<(std::ostream& os, Shape const& shape) {
    os << '[';
    for (size_t i = 0; i < shape.sizes.size(); ++i) {
      os << (i ? ", " : "") << shape.sizes[i];
    }
    return os << ']';
  }
};

inline Shape shape_of(Tensor const& tensor) {
  return {{tensor.sizes().data(), tensor.sizes().size()}};
}

inline Shape strides_of(Tensor const& tensor) {
  return {{tensor.strides().data(), tensor.strides().size()}};
}

// Requires a tensor of this dtype and shape on the device of this index, in any strides.
inline void check_strided_tensor(char const* op, char const* name, Tensor const& tensor,
                                 int32_t device, ScalarType dtype,
                                 std::initializer_list<int64_t> expected) {
  Shape const want{{expected.begin(), expected.size()}};
  Shape const got = shape_of(tensor);
  int32_t const found = tensor.get_device_index();
  STD_TORCH_CHECK(is_on_device(tensor) && found == device, op, ": `", name, "` must be on ",
                  device_name(device), ", got ",
                  is_on_device(tensor) ? device_name(found) : "device " + std::to_string(found));
  STD_TORCH_CHECK(tensor.scalar_type() == dtype, op, ": `", name, "` must have dtype ", dtype,
                  ", got ", tensor.scalar_type());
  STD_TORCH_CHECK(std::ranges::equal(want.sizes, got.sizes), op, ": `", name, "` must have shape ",
                  want, ", got ", got);
}

// The same for a tensor that must be contiguous.
inline void check_tensor(char const* op, char const* name, Tensor const& tensor, int32_t device,
                         ScalarType dtype, std::initializer_list<int64_t> expected) {
  check_strided_tensor(op, name, tensor, device, dtype, expected);
  STD_TORCH_CHECK(tensor.is_contiguous(), op, ": `", name, "` must be contiguous, got strides ",
                  strides_of(tensor));
}

// The same for a tensor that a kernel reads or writes in 16-byte vectors.
inline void check_vector_tensor(char const* op, char const* name, Tensor const& tensor,
                                int32_t device, ScalarType dtype,
                                std::initializer_list<int64_t> expected) {
  check_tensor(op, name, tensor, device, dtype, expected);
  auto const address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  STD_TORCH_CHECK(address % 16 == 0, op, ": `", name, "` must be 16-byte aligned, got an address ",
                  address % 16, " bytes past that");
}

// Requires rows [R, C] of a working dtype on a device.
inline void check_rows(char const* op, char const* name, Tensor const& x) {
  STD_TORCH_CHECK(is_on_device(x), op, ": `", name, "` must be on ", kDevice);
  STD_TORCH_CHECK(x.dim() == 2, op, ": `", name, "` must be 2-D, got ", shape_of(x));
}

// The dtype that activations and weights have, which kernels are compiled for.
inline DType to_dtype(char const* op, ScalarType type) {
  switch (type) {
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kHalf;
    default: STD_TORCH_CHECK(false, op, ": dtype must be bfloat16 or float16, got ", type);
  }
}

inline void check_launch(char const* op, cudaError_t status) {
  STD_TORCH_CHECK(status != cudaErrorNoKernelImageForDevice, op,
                  ": this build has no kernel for the device, only for the architectures ",
                  P_EAGLE_ARCHS, "; build with P_EAGLE_ARCHS set to the device's");
  STD_TORCH_CHECK(status == cudaSuccess, op, ": launch failed: ", cudaGetErrorString(status));
}

}  // namespace p_eagle
