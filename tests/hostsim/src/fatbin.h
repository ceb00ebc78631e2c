// What nvcc put into the host object: which kernels and variables there are, and their PTX.
#pragma once

#include <cstdint>

#include "program.h"

namespace hostsim {

// A __global__ function, known to the host by the address of its stub.
struct RegisteredKernel {
  Kernel const* kernel = nullptr;
  uint32_t static_shared = 0;
  // cudaFuncSetAttribute
  int max_dynamic_shared = 0;
  bool non_portable_cluster = false;
};

// Both parse and link the PTX of the whole source file at the first use of anything in it. They
// throw std::runtime_error for PTX that cannot be read, and return nullptr for an address that no
// CUDA source has registered.
RegisteredKernel* find_kernel(void const* host_function);
GlobalVariable* find_variable(void const* host_symbol);

}  // namespace hostsim
