// Rows for a matrix product that is not ours, which reads them from memory: for each r < num_rows,
//
//   out[r] = [norm](tap_0[source_row[r]], tap_1[source_row[r]], ...)
//
// zeros where there is no source row; the norm is over the row, or over the columns of each tap.
// norm_rows has one tap, and its rows in their places; gather_taps has the target's hidden states.
//
// Mapping: one block per row and group, a group being the columns that are normed together, or those
// of a tap. Its columns stay in registers from the sum of squares to the store, as long as they are
// not more than kKeptVecs a thread holds; the rest is read a second time, out of a cache.
// Numerics: float32 from load to store, one rounding. Traffic: each row read once and written once.

#include "common/launch.h"
#include "common/reduce.cuh"
#include "ops.h"
#include "rows/vector.cuh"

namespace p_eagle {
namespace {

constexpr int kNormThreads = 256;
constexpr int kKeptVecs = 6;  // 12288 columns: four taps of 3072 in one norm

using NormReduce = BlockSum<kNormThreads>;

// The columns of one row that a block works on.
template <class Row>
class RowGroup {
 public:
  CUTLASS_DEVICE RowGroup(LinearInput const& input, int source, int group, int num_vecs)
      : input_(input),
        tap_vecs_(input.tap_width / Row::kWidth),
        source_(source),
        first_vec_(group * num_vecs) {}

  CUTLASS_DEVICE typename Row::Vec load(int vec) const {
    int const tap = (first_vec_ + vec) / tap_vecs_;
    int const column = (first_vec_ + vec) % tap_vecs_;
    return Row::load(input_.taps[tap], int64_t(source_) * tap_vecs_ + column);
  }

  CUTLASS_DEVICE typename Row::Vec normed(typename Row::Vec const& x, int vec, float rstd) const {
    if (!input_.norm_weight) {
      return x;
    }
    auto values = Row::to_float(x);
    auto const scale = Row::to_float(Row::load(input_.norm_weight, first_vec_ + vec));
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < Row::kWidth; ++i) {
      values[i] *= rstd * scale[i];
    }
    return Row::rounded(values);
  }

 private:
  LinearInput const& input_;
  int tap_vecs_;
  int source_;
  int first_vec_;
};

template <class Row>
CUTLASS_DEVICE float sum_of_squares(typename Row::Vec const& x) {
  auto const values = Row::to_float(x);
  float sum = 0.0f;
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < Row::kWidth; ++i) {
    sum += values[i] * values[i];
  }
  return sum;
}

template <class Row>
__global__ void __launch_bounds__(kNormThreads)
    norm_rows_kernel(__grid_constant__ NormRowsParams const params) {
  __shared__ NormReduce::SharedStorage shared;

  LinearInput const& input = params.input;
  int const row = blockIdx.x;
  int const thread = threadIdx.x;
  int const row_vecs = input.num_taps * input.tap_width / Row::kWidth;
  int const num_vecs = row_vecs / gridDim.y;

  wait_for_previous_kernel();
  let_next_kernel_start();
  if (row >= *input.num_rows) {
    return;
  }
  int const source = input.source_row ? input.source_row[row] : row;
  int64_t const first_out = int64_t(row) * row_vecs + blockIdx.y * num_vecs;
  if (source < 0) {
    typename Row::Vec zeros;
    zeros.clear();
    for (int vec = thread; vec < num_vecs; vec += kNormThreads) {
      Row::store(params.out, first_out + vec, zeros);
    }
    return;
  }

  RowGroup<Row> const group(input, source, blockIdx.y, num_vecs);
  typename Row::Vec kept[kKeptVecs];
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < kKeptVecs; ++i) {
    int const vec = thread + i * kNormThreads;
    kept[i].clear();
    if (vec < num_vecs) {
      kept[i] = group.load(vec);
    }
  }

  float rstd = 0.0f;
  if (input.norm_weight) {
    int const columns = num_vecs * Row::kWidth;
    float sum = 0.0f;
    if (input.sum_squares) {
      int const num_sums = (columns + kStatisticColumns - 1) / kStatisticColumns;
      for (int i = thread; i < num_sums; i += kNormThreads) {
        sum += input.sum_squares[int64_t(i) * input.max_rows + source];
      }
    } else {
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kKeptVecs; ++i) {
        sum += sum_of_squares<Row>(kept[i]);
      }
      for (int vec = thread + kKeptVecs * kNormThreads; vec < num_vecs; vec += kNormThreads) {
        sum += sum_of_squares<Row>(group.load(vec));
      }
    }
    sum = NormReduce::reduce(shared, sum, thread);
    rstd = rsqrtf(sum / float(columns) + input.eps);
  }

  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < kKeptVecs; ++i) {
    int const vec = thread + i * kNormThreads;
    if (vec < num_vecs) {
      Row::store(params.out, first_out + vec, group.normed(kept[i], vec, rstd));
    }
  }
  for (int vec = thread + kKeptVecs * kNormThreads; vec < num_vecs; vec += kNormThreads) {
    Row::store(params.out, first_out + vec, group.normed(group.load(vec), vec, rstd));
  }
}

}  // namespace

cudaError_t launch_norm_rows(NormRowsParams const& params, DType dtype, cudaStream_t stream) {
  LinearInput const& input = params.input;
  bool is_wide = are_wide(input.tap_width, {input.norm_weight, params.out});
  for (int i = 0; i < input.num_taps; ++i) {
    is_wide = is_wide && are_wide(input.tap_width, {input.taps[i]});
  }
  bool const is_one_group = input.norm_weight && !input.norms_each_tap;
  LaunchPlan const plan{.grid = dim3(input.max_rows, is_one_group ? 1 : input.num_taps),
                        .block = dim3(kNormThreads),
                        .stream = stream};
  return dispatch_rows(dtype, is_wide,
                       [&]<class Row>() { return launch(&norm_rows_kernel<Row>, plan, params); });
}

}  // namespace p_eagle
