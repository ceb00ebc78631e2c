// The last CTA of the head puts together what all have found: a warp for each sampled row, several
// rows at a time so that one row's loads cover another's.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "common/arrival.cuh"
#include "head/column.cuh"
#include "head/order.cuh"
#include "head/tiles.h"
#include "ops.h"

namespace p_eagle {

// What the CTAs have found, in the workspace.
class HeadFindings {
 public:
  CUTLASS_DEVICE HeadFindings(LmHeadTopkParams const& params, int num_ctas)
      : layout_{num_ctas, params.num_samples, params.top_k} {
    char* const base = static_cast<char*>(params.workspace);
    counters_ = reinterpret_cast<int32_t*>(base);
    sums_ = reinterpret_cast<float2*>(base + HeadWorkspaceLayout::kSumsOffset);
    keys_ = reinterpret_cast<uint64_t*>(base + layout_.keys_offset());
    logits_ = reinterpret_cast<float*>(base + layout_.logits_offset());
  }

  // Leaves the warp's findings on a row.
  CUTLASS_DEVICE void store(int sample, int cta, TokenState const& state) const {
    int const lane = threadIdx.x % kWarpSize;
    if (lane == 0) {
      sums_[layout_.sum_index(sample, cta)] = {state.log_sum.max, state.log_sum.sum};
    }
    if (lane < layout_.top_k) {
      int64_t const entry = layout_.entry_index(sample, lane, cta);
      keys_[entry] = state.keys[lane];
      logits_[entry] = state.logits[lane];
    }
  }

  // Whether all CTAs have left their findings, so that they may be read. See arrives_last.
  CUTLASS_DEVICE bool arrives_last(int token_tile) const {
    return p_eagle::arrives_last(counters_ + token_tile, layout_.num_ctas);
  }

  CUTLASS_DEVICE int num_ctas() const { return layout_.num_ctas; }

  CUTLASS_DEVICE LogSum log_sum(int sample, int cta) const {
    float2 const found = __ldcg(sums_ + layout_.sum_index(sample, cta));
    return {found.x, found.y};
  }

  CUTLASS_DEVICE uint64_t key(int sample, int place, int cta) const {
    return __ldcg(reinterpret_cast<unsigned long long const*>(
        keys_ + layout_.entry_index(sample, place, cta)));
  }

  CUTLASS_DEVICE float logit(int sample, int place, int cta) const {
    return __ldcg(logits_ + layout_.entry_index(sample, place, cta));
  }

 private:
  HeadWorkspaceLayout layout_;
  int32_t* counters_;
  float2* sums_;
  uint64_t* keys_;
  float* logits_;
};

// Of some sampled rows at once; of those with is_row false nothing is read.
template <int kCount>
CUTLASS_DEVICE void merge_log_sums(HeadFindings const& findings, int first_sample, int stride,
                                   bool const (&is_row)[kCount], LogSum (&merged)[kCount]) {
  LogSum parts[kCount][kHeadLaneLists];
  CUTLASS_PRAGMA_UNROLL
  for (int c = 0; c < kCount; ++c) {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kHeadLaneLists; ++i) {
      int const cta = i * kWarpSize + threadIdx.x % kWarpSize;
      if (cta < findings.num_ctas() && is_row[c]) {
        parts[c][i] = findings.log_sum(first_sample + c * stride, cta);
      }
    }
  }
  CUTLASS_PRAGMA_UNROLL
  for (int c = 0; c < kCount; ++c) {
    for (LogSum const& part : parts[c]) {
      merged[c].max = fmaxf(merged[c].max, part.max);
    }
    merged[c].max = warp_max(merged[c].max);
    for (LogSum const& part : parts[c]) {
      merged[c].sum += part.sum * __expf(part.max - merged[c].max);
    }
    merged[c].sum = warp_sum(merged[c].sum);
  }
}

// Of kCount sampled rows of the warp, `stride` apart, those before `end`. Writes their results.
template <int kCount>
CUTLASS_DEVICE void merge_rows(LmHeadTopkParams const& params, HeadFindings const& findings,
                               int first_sample, int stride, int end) {
  constexpr int kLaneEntries = kMaxTopK * kMaxTopK / kWarpSize;
  int const lane = threadIdx.x % kWarpSize;
  int const top_k = params.top_k;
  bool is_row[kCount];
  CUTLASS_PRAGMA_UNROLL
  for (int c = 0; c < kCount; ++c) {
    int const sample = first_sample + c * stride;
    is_row[c] = sample < end && params.input.source_row[sample] >= 0;
  }
  LogSum log_sums[kCount];
  merge_log_sums(findings, first_sample, stride, is_row, log_sums);

  // The lists with the best first entries, the i-th in lane i. The best of all are in those: an
  // entry of another list has the first entries of all of these before it.
  int lists[kCount];
  {
    LaneCandidates<int, kHeadLaneLists> firsts[kCount];
    CUTLASS_PRAGMA_UNROLL
    for (int c = 0; c < kCount; ++c) {
      int const sample = first_sample + c * stride;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kHeadLaneLists; ++i) {
        int const cta = i * kWarpSize + lane;
        bool const has_list = cta < findings.num_ctas() && is_row[c];
        firsts[c].keys[i] = has_list ? findings.key(sample, 0, cta) : kNoCandidate;
        firsts[c].values[i] = cta;
      }
      lists[c] = -1;
    }
#pragma unroll 1
    for (int place = 0; place < top_k; ++place) {
      CUTLASS_PRAGMA_UNROLL
      for (int c = 0; c < kCount; ++c) {
        int cta = -1;
        bool const is_found = firsts[c].take_best(cta) != kNoCandidate;
        if (is_found && lane == place) {
          lists[c] = cta;
        }
      }
    }
  }

  uint64_t best[kCount];
  float logits[kCount];
  {
    LaneCandidates<float, kLaneEntries> entries[kCount];
    CUTLASS_PRAGMA_UNROLL
    for (int c = 0; c < kCount; ++c) {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kLaneEntries; ++i) {
        entries[c].keys[i] = kNoCandidate;
        entries[c].values[i] = -INFINITY;
        if (i * kWarpSize < top_k * top_k) {
          int const entry = i * kWarpSize + lane;
          int const list = __shfl_sync(kAllLanes, lists[c], entry / top_k % kWarpSize);
          if (entry < top_k * top_k && list >= 0) {
            int const sample = first_sample + c * stride;
            entries[c].keys[i] = findings.key(sample, entry % top_k, list);
            entries[c].values[i] = findings.logit(sample, entry % top_k, list);
          }
        }
      }
      best[c] = kNoCandidate;
      logits[c] = -INFINITY;
    }
#pragma unroll 1
    for (int place = 0; place < top_k; ++place) {
      CUTLASS_PRAGMA_UNROLL
      for (int c = 0; c < kCount; ++c) {
        float logit = -INFINITY;
        uint64_t const key = entries[c].take_best(logit);
        if (lane == place) {
          best[c] = key;
          logits[c] = logit;
        }
      }
    }
  }

  CUTLASS_PRAGMA_UNROLL
  for (int c = 0; c < kCount; ++c) {
    int const sample = first_sample + c * stride;
    if (sample >= end) {
      break;
    }
    if (lane < top_k) {
      int64_t id = -1;
      if (is_row[c]) {
        int const draft_id = candidate_id(best[c]);
        id = params.draft_to_target ? params.draft_to_target[draft_id] : draft_id;
      }
      params.ids[int64_t(sample) * top_k + lane] = id;
      params.logits[int64_t(sample) * top_k + lane] = logits[c];
    }
    if (lane == 0) {
      params.lse[sample] = log_sums[c].log_sum_exp();
    }
  }
}

}  // namespace p_eagle
