// The contract of every kernel: what goes in (Params) and the function that launches it.
// Plain C++ without torch or CuTe, so that both the host layer and the kernels can include it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace p_eagle {

enum class DType : int { kBFloat16, kHalf };

// Layer-0 input of the drafter. R: rows in the buffers, H: hidden size, V: vocabulary size.
struct EmbedNormConcatParams {
  int64_t const* token_ids = nullptr;   // [R]
  int32_t const* source_row = nullptr;  // [R]     negative: a mask row, whose `hidden` is not read
  int32_t const* num_rows = nullptr;    // [1]     rows from here on are neither read nor written
  void const* embedding = nullptr;      // [V, H]  Element
  void const* hidden = nullptr;         // [R, H]  Element
  void const* mask_hidden = nullptr;    // [H]     Element
  void const* embed_weight = nullptr;   // [H]     Element
  void const* hidden_weight = nullptr;  // [H]     Element
  void* out = nullptr;                  // [R, 2H] Element
  void* residual = nullptr;             // [R, H]  Element
  int max_rows = 0;                     // R
  int hidden_size = 0;                  // H
  int vocab_size = 0;                   // V
  float eps = 0.0f;
  bool norm_before_residual = false;
};

cudaError_t launch_embed_norm_concat(EmbedNormConcatParams const& params, DType dtype,
                                     cudaStream_t stream);

}  // namespace p_eagle
