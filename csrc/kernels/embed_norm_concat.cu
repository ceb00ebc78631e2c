// Layer-0 input of the drafter, in one pass over memory. For each row r < num_rows:
//
//   h           = source_row[r] < 0 ? mask_hidden : hidden[r]
//   out[r]      = [rms_norm(embedding[token_ids[r]]) * embed_weight, rms_norm(h) * hidden_weight]
//   residual[r] = norm_before_residual ? out[r, H:] : h
//
// Mapping: one block per (row, half): half 0 normalises the embedding, half 1 the hidden state. R is
// a few rows per request, so 2R blocks are needed more than large ones. The row count is read on the
// device, so that one CUDA graph serves every acceptance pattern; surplus blocks leave at once.
// Numerics: float32 from load to store, one rounding per element; h is copied bit for bit.
// Traffic: 5H elements per row, 4H where a row is a mask row, whose h comes from L2.

#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>
#include <cutlass/numeric_types.h>

#include <cassert>

#include "common/launch.h"
#include "common/reduce.cuh"
#include "ops.h"

namespace p_eagle {
namespace {

// ---- Configuration: everything known at compile time --------------------------------------------

template <class Element_, int kVecsPerThread_>
struct Config {
  using Element = Element_;
  static constexpr int kThreads = 128;
  static constexpr int kVecElems = 16 / int(sizeof(Element));  // one 16-byte access
  static constexpr int kVecsPerThread = kVecsPerThread_;
  static constexpr int kMaxHidden = kThreads * kVecElems * kVecsPerThread;

  using Elements = cutlass::Array<Element, kVecElems>;
  using Vec = cutlass::AlignedArray<Element, kVecElems>;
  using Accum = cutlass::Array<float, kVecElems>;
  using ToFloat = cutlass::NumericArrayConverter<float, Element, kVecElems>;
  using ToElement = cutlass::NumericArrayConverter<Element, float, kVecElems>;
  using Reduce = BlockSum<kThreads>;

  struct SharedStorage {
    typename Reduce::SharedStorage reduce;
  };
};

// ---- Kernel -------------------------------------------------------------------------------------

template <class Vec>
CUTLASS_DEVICE Vec const* input_row(EmbedNormConcatParams const& params, int row,
                                    bool is_embedding_half, int num_vecs) {
  if (is_embedding_half) {
    int64_t const id = params.token_ids[row];
    assert(0 <= id && id < params.vocab_size);
    return static_cast<Vec const*>(params.embedding) + id * num_vecs;
  }
  if (params.source_row[row] < 0) {
    return static_cast<Vec const*>(params.mask_hidden);
  }
  return static_cast<Vec const*>(params.hidden) + int64_t(row) * num_vecs;
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads)
    embed_norm_concat_kernel(__grid_constant__ EmbedNormConcatParams const params) {
  using Vec = typename Config::Vec;
  using Accum = typename Config::Accum;

  __shared__ typename Config::SharedStorage shared;

  int const row = blockIdx.x;
  bool const is_embedding_half = blockIdx.y == 0;
  int const thread = threadIdx.x;
  int const num_vecs = params.hidden_size / Config::kVecElems;

  // Prologue: only constants may be read before the wait, and the weights are.
  auto const* weight =
      static_cast<Vec const*>(is_embedding_half ? params.embed_weight : params.hidden_weight);
  Vec w[Config::kVecsPerThread];
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Config::kVecsPerThread; ++i) {
    int const vec = thread + i * Config::kThreads;
    if (vec < num_vecs) {
      w[i] = weight[vec];
    }
  }
  wait_for_previous_kernel();
  let_next_kernel_start();
  if (row >= *params.num_rows) {
    return;
  }

  // Load the row once; it stays in registers.
  Vec const* x_row = input_row<Vec>(params, row, is_embedding_half, num_vecs);
  Vec x[Config::kVecsPerThread];
  float sum_of_squares = 0.0f;
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Config::kVecsPerThread; ++i) {
    int const vec = thread + i * Config::kThreads;
    if (vec < num_vecs) {
      x[i] = x_row[vec];
      Accum const values = Config::ToFloat::convert(x[i]);
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < Config::kVecElems; ++j) {
        sum_of_squares += values[j] * values[j];
      }
    }
  }
  sum_of_squares = Config::Reduce::reduce(shared.reduce, sum_of_squares, thread);
  float const rstd = rsqrtf(sum_of_squares / float(params.hidden_size) + params.eps);

  // Scale, round once, store.
  auto* out_row = static_cast<Vec*>(params.out) + int64_t(row) * 2 * num_vecs;
  auto* out_half = is_embedding_half ? out_row : out_row + num_vecs;
  auto* residual_row = static_cast<Vec*>(params.residual) + int64_t(row) * num_vecs;
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Config::kVecsPerThread; ++i) {
    int const vec = thread + i * Config::kThreads;
    if (vec < num_vecs) {
      Accum values = Config::ToFloat::convert(x[i]);
      Accum const scale = Config::ToFloat::convert(w[i]);
      CUTLASS_PRAGMA_UNROLL
      for (int j = 0; j < Config::kVecElems; ++j) {
        values[j] *= rstd * scale[j];
      }
      Vec y;
      static_cast<typename Config::Elements&>(y) = Config::ToElement::convert(values);
      out_half[vec] = y;
      if (!is_embedding_half) {
        residual_row[vec] = params.norm_before_residual ? y : x[i];
      }
    }
  }
}

// ---- Dispatch: runtime values become a Config, the launch happens once --------------------------

template <class Config>
cudaError_t launch_with(EmbedNormConcatParams const& params, cudaStream_t stream) {
  LaunchPlan const plan{
      .grid = dim3(params.max_rows, 2), .block = dim3(Config::kThreads), .stream = stream};
  return launch(&embed_norm_concat_kernel<Config>, plan, params);
}

template <class Element>
cudaError_t dispatch_hidden(EmbedNormConcatParams const& params, cudaStream_t stream) {
  if (params.hidden_size <= Config<Element, 3>::kMaxHidden) {
    return launch_with<Config<Element, 3>>(params, stream);
  }
  if (params.hidden_size <= Config<Element, 8>::kMaxHidden) {
    return launch_with<Config<Element, 8>>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_embed_norm_concat(EmbedNormConcatParams const& params, DType dtype,
                                     cudaStream_t stream) {
  switch (dtype) {
    case DType::kBFloat16: return dispatch_hidden<cutlass::bfloat16_t>(params, stream);
    case DType::kHalf: return dispatch_hidden<cutlass::half_t>(params, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace p_eagle
