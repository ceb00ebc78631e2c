// Rows of the target's logits: in vectors where they are aligned, as weights of a softmax.
#pragma once

#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>
#include <cutlass/numeric_types.h>

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "head/order.cuh"
#include "ops.h"
#include "verification/layout.h"

namespace p_eagle {

template <class Element_, bool kIsWide>
struct LogitsConfig {
  using Element = Element_;
  static constexpr int kWidth = kIsWide ? 16 / int(sizeof(Element)) : 1;  // 16 bytes or an element
  static constexpr int kVectors = kThreadLogits / kWidth;
};

// Whether rows can be read in vectors of 16 bytes.
template <class Element>
CUTLASS_HOST_DEVICE bool has_wide_rows(void const* logits, int vocab_size) {
  constexpr int kVectorLogits = 16 / int(sizeof(Element));
  return vocab_size % kVectorLogits == 0 && reinterpret_cast<uintptr_t>(logits) % 16 == 0;
}

// A NaN counts as -inf: the maximum of NaN and a number is the number.
CUTLASS_DEVICE float clean(float logit) { return fmaxf(logit, -INFINITY); }

// The kWidth logits of a row from `first` on; those past its end are -inf.
template <class Config>
CUTLASS_DEVICE void load_vector(VerifyParams const& params, int64_t row, int first,
                                float (&logits)[Config::kWidth]) {
  using Vec = cutlass::AlignedArray<typename Config::Element, Config::kWidth>;
  // Rows of vectors are whole numbers of them, so a vector is in its row or past it.
  if (first >= params.vocab_size) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Config::kWidth; ++i) {
      logits[i] = -INFINITY;
    }
    return;
  }
  auto const* const data = static_cast<typename Config::Element const*>(params.logits);
  Vec const vec = *reinterpret_cast<Vec const*>(data + row * params.vocab_size + first);
  auto const values =
      cutlass::NumericArrayConverter<float, typename Config::Element, Config::kWidth>::convert(vec);
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Config::kWidth; ++i) {
    logits[i] = clean(values[i]);
  }
}

// One logit, of a token of the vocabulary.
template <class Config>
CUTLASS_DEVICE float load_logit(VerifyParams const& params, int64_t row, int token) {
  auto const* const data = static_cast<typename Config::Element const*>(params.logits);
  return clean(float(data[row * params.vocab_size + token]));
}

// Such that a difference of zero stays zero.
CUTLASS_DEVICE float inverse(float temperature) { return 1.0f / fmaxf(temperature, 1e-30f); }

// How the logits of a row become weights. They are relative to a maximum that is finite.
struct RowSoftmax {
  float floor = -INFINITY;
  float inverse_temperature = 0.0f;  // 0: the request takes the argmax

  CUTLASS_DEVICE RowSoftmax(VerifyParams const& params, int request, int64_t row) {
    float const temperature = params.temperature ? params.temperature[request] : 0.0f;
    if (temperature > 0.0f) {
      inverse_temperature = inverse(temperature);
      floor = params.floors ? params.floors[row] : -INFINITY;
      is_random = true;
    }
  }

  CUTLASS_DEVICE float weight(float logit, float largest) const {
    bool const is_kept = logit >= floor && logit > -INFINITY;
    return is_kept ? __expf((logit - largest) * inverse_temperature) : 0.0f;
  }

  bool is_random = false;
};

// What was found of the tiles of a row.
class TileFindings {
 public:
  CUTLASS_DEVICE TileFindings(VerifyParams const& params, int request, int node, int64_t row) {
    int64_t const num_nodes = int64_t(params.num_requests) * params.max_nodes;
    VerifyWorkspaceLayout const layout{params.is_lazy ? num_nodes : params.num_rows,
                                       params.vocab_size};
    int64_t const place = params.is_lazy ? int64_t(request) * params.max_nodes + node : row;
    num_tiles_ = int(layout.num_tiles());
    char* const base = static_cast<char*>(params.workspace);
    keys_ = reinterpret_cast<uint64_t*>(base) + place * num_tiles_;
    sums_ = reinterpret_cast<float*>(base + layout.sums_offset()) + place * num_tiles_;
  }

  CUTLASS_DEVICE int num_tiles() const { return num_tiles_; }

  CUTLASS_DEVICE uint64_t& key(int tile) const { return keys_[tile]; }

  CUTLASS_DEVICE float& sum(int tile) const { return sums_[tile]; }

 private:
  uint64_t* keys_;
  float* sums_;
  int num_tiles_;
};

}  // namespace p_eagle
