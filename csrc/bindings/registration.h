// The ops of this library, a list per file of the host layer, as they are registered with torch.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <span>

namespace p_eagle {

struct CudaOp {
  char const* name;
  void (*boxed)(StableIValue*, uint64_t, uint64_t);
};

std::span<CudaOp const> input_ops();
std::span<CudaOp const> layer_ops();
std::span<CudaOp const> attention_ops();
std::span<CudaOp const> gemm_ops();
std::span<CudaOp const> pruning_ops();
std::span<CudaOp const> row_ops();
std::span<CudaOp const> head_ops();
std::span<CudaOp const> tree_ops();

}  // namespace p_eagle
