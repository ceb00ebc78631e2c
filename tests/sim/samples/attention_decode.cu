// Decode attention over a paged cache: one query per sequence, float32. The tokens of a sequence are
// split over blocks, those of a block over warps; each keeps an online softmax. The last block of a
// (head, sequence) merges the splits.

#include "ptx.cuh"

namespace {

constexpr int kHeadDim = 64;
constexpr int kPageTokens = 8;
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kDimsPerLane = kHeadDim / kWarpSize;
constexpr int kPartial = kHeadDim + 2;  // floats of a split: its output, maximum, sum

struct Params {
  float const* q;         // [sequences, heads, kHeadDim]
  float const* k;         // [pages, kPageTokens, heads, kHeadDim]
  float const* v;         // [pages, kPageTokens, heads, kHeadDim]
  int const* page_table;  // [sequences, max_pages]
  int const* lengths;     // [sequences]
  float* partial;         // [sequences, heads, splits, kPartial]
  unsigned* counters;     // [sequences, heads]  zeros
  float* out;             // [sequences, heads, kHeadDim]
  int heads, max_pages;
};

struct Shared {
  float q[kHeadDim];
  float maximum[kWarps];
  float sum[kWarps];
  float out[kWarps][kHeadDim];
  bool is_last;
};

// What a weight relative to `old_maximum` must be multiplied with. Both are -inf where there has been
// no token yet.
__device__ float rescale(float old_maximum, float new_maximum) {
  return old_maximum == -INFINITY ? 0.0f : __expf(old_maximum - new_maximum);
}

struct Softmax {
  float maximum = -INFINITY;
  float sum = 0.0f;
  float out[kDimsPerLane] = {};

  __device__ void add(float score, float const (&v)[kDimsPerLane]) {
    float const new_maximum = fmaxf(maximum, score);
    float const correction = rescale(maximum, new_maximum);
    float const weight = __expf(score - new_maximum);
    sum = sum * correction + weight;
    for (int d = 0; d < kDimsPerLane; ++d) {
      out[d] = out[d] * correction + weight * v[d];
    }
    maximum = new_maximum;
  }
};

// Every kWarps-th token of [begin, end).
__device__ Softmax attend(Shared const& shared, Params const& p, int sequence, int head, int begin,
                          int end) {
  int const lane = threadIdx.x % kWarpSize;
  Softmax softmax;
  for (int token = begin + int(threadIdx.x) / kWarpSize; token < end; token += kWarps) {
    int const page = p.page_table[sequence * p.max_pages + token / kPageTokens];
    int64_t const slot = int64_t(page) * kPageTokens + token % kPageTokens;
    int64_t const offset = (slot * p.heads + head) * kHeadDim;
    float score = 0.0f;
    float v[kDimsPerLane];
    for (int d = 0; d < kDimsPerLane; ++d) {
      int const dim = lane + d * kWarpSize;
      score += shared.q[dim] * p.k[offset + dim];
      v[d] = p.v[offset + dim];
    }
    softmax.add(warp_sum(score), v);
  }
  return softmax;
}

__global__ void __launch_bounds__(kThreads) attention_decode_kernel(Params const p) {
  __shared__ Shared shared;

  int const thread = threadIdx.x;
  int const warp = thread / kWarpSize;
  int const lane = thread % kWarpSize;
  int const split = blockIdx.x;
  int const head = blockIdx.y;
  int const sequence = blockIdx.z;
  int const num_splits = gridDim.x;
  int const sequence_head = sequence * p.heads + head;

  int const length = p.lengths[sequence];
  int const per_split = (length + num_splits - 1) / num_splits;
  int const begin = split * per_split;
  int const end = min(begin + per_split, length);

  if (thread < kHeadDim) {
    shared.q[thread] = p.q[sequence_head * kHeadDim + thread] * rsqrtf(float(kHeadDim));
  }
  __syncthreads();  // q is staged
  Softmax const softmax = attend(shared, p, sequence, head, begin, end);

  // Merge the warps.
  if (lane == 0) {
    shared.maximum[warp] = softmax.maximum;
    shared.sum[warp] = softmax.sum;
  }
  for (int d = 0; d < kDimsPerLane; ++d) {
    shared.out[warp][lane + d * kWarpSize] = softmax.out[d];
  }
  __syncthreads();  // the warps' results are staged
  float* const partial = p.partial + int64_t(sequence_head) * num_splits * kPartial;
  if (thread < kHeadDim) {
    float maximum = -INFINITY;
    for (int w = 0; w < kWarps; ++w) {
      maximum = fmaxf(maximum, shared.maximum[w]);
    }
    float sum = 0.0f;
    float out = 0.0f;
    for (int w = 0; w < kWarps; ++w) {
      float const correction = rescale(shared.maximum[w], maximum);
      sum += shared.sum[w] * correction;
      out += shared.out[w][thread] * correction;
    }
    float* const mine = partial + split * kPartial;
    mine[thread] = out;
    if (thread == 0) {
      mine[kHeadDim] = maximum;
      mine[kHeadDim + 1] = sum;
    }
  }

  __syncthreads();  // partial is written
  if (thread == 0) {
    __threadfence();  // release
    shared.is_last = atomicAdd(&p.counters[sequence_head], 1u) == unsigned(num_splits) - 1;
    __threadfence();  // acquire
  }
  __syncthreads();  // is_last is known
  if (!shared.is_last) {
    return;
  }

  // Merge the splits.
  if (thread < kHeadDim) {
    float maximum = -INFINITY;
    for (int s = 0; s < num_splits; ++s) {
      maximum = fmaxf(maximum, partial[s * kPartial + kHeadDim]);
    }
    float sum = 0.0f;
    float out = 0.0f;
    for (int s = 0; s < num_splits; ++s) {
      float const* const part = partial + s * kPartial;
      float const correction = rescale(part[kHeadDim], maximum);
      sum += part[kHeadDim + 1] * correction;
      out += part[thread] * correction;
    }
    p.out[sequence_head * kHeadDim + thread] = out / sum;
  }
  if (thread == 0) {
    p.counters[sequence_head] = 0;
  }
}

}  // namespace

SAMPLE_LAUNCHER launch_attention_decode(float const* q, float const* k, float const* v,
                                        int const* page_table, int const* lengths, float* partial,
                                        unsigned* counters, float* out, int sequences, int heads,
                                        int max_pages, int splits) {
  Params const params{q, k, v, page_table, lengths, partial, counters, out, heads, max_pages};
  attention_decode_kernel<<<dim3(splits, heads, sequences), kThreads>>>(params);
  return cudaGetLastError();
}
