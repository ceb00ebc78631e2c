// The contract of every kernel: what goes in (Params) and the function that launches it.
// Plain C++ without torch or CuTe, so that both the host layer and the kernels can include it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace p_eagle {

enum class DType : int { kBFloat16, kHalf };

// The work map of a pass's attention. B: requests, R: rows in the buffers.
struct PlanAttentionParams {
  int32_t const* row_start = nullptr;  // [B + 1]
  int32_t const* seq_lens = nullptr;   // [B]
  int64_t const* positions = nullptr;  // [R]
  int32_t* work = nullptr;             // as AttentionWorkLayout says
  int num_rows = 0;                    // R
  int num_requests = 0;                // B
  int group = 0;                       // query heads per KV head
  int num_kv_heads = 0;
  int max_keys = 0;    // of a request
  int window = 0;      // 0: none
  int num_blocks = 0;  // of the attention
  bool is_tree = false;
};

cudaError_t launch_plan_attention(PlanAttentionParams const& params, cudaStream_t stream);

// The rows of a drafter pass. T: target rows, B: requests, K: drafted tokens, R = T + B * (K - 1):
// rows in the buffers. How many of them exist, and what they are, depends on what the inputs hold.
struct PrepareInputsParams {
  int64_t const* target_tokens = nullptr;     // [T]
  int64_t const* target_positions = nullptr;  // [T]
  int32_t const* query_start = nullptr;       // [B + 1]
  int32_t const* num_rejected = nullptr;      // [B]
  int64_t const* next_tokens = nullptr;       // [B]
  int32_t const* block_table = nullptr;       // [B, max_blocks]
  int64_t* token_ids = nullptr;               // [R]
  int64_t* positions = nullptr;               // [R]
  int64_t* slots = nullptr;                   // [R]
  int32_t* source_row = nullptr;              // [R]
  int32_t* row_start = nullptr;               // [B + 1]
  int32_t* seq_lens = nullptr;                // [B]
  int32_t* sample_rows = nullptr;             // [B * K]
  int64_t mask_token_id = 0;
  int64_t block_size = 0;
  int64_t max_position = 0;
  int64_t max_blocks = 0;
  int num_target_rows = 0;          // T
  int num_requests = 0;             // B
  int num_speculative_tokens = 0;   // K
  int max_rows = 0;                 // R
  PlanAttentionParams attention{};  // of these rows; work is null: not wanted
};

cudaError_t launch_prepare_inputs(PrepareInputsParams const& params, cudaStream_t stream);

// The rows that go on after the last layer has stored its keys and values: of a request that has
// rows the last K, from row K * (requests before it that have rows) on. R: rows in the buffers.
struct PruneRowsParams {
  void const* x = nullptr;                // [R, H]    of any type
  int64_t const* positions = nullptr;     // [R]
  int32_t const* row_start = nullptr;     // [B + 1]
  int32_t const* sample_rows = nullptr;   // [B * K]
  void* out = nullptr;                    // [B * K, H]
  int64_t* pruned_positions = nullptr;    // [B * K]
  int32_t* pruned_row_start = nullptr;    // [B + 1]
  int32_t* pruned_sample_rows = nullptr;  // [B * K]
  int num_rows = 0;                       // R
  int num_requests = 0;                   // B
  int num_kept = 0;                       // K
  int row_bytes = 0;                      // of x
  PlanAttentionParams attention{};        // of the kept rows; work is null: not wanted
};

cudaError_t launch_prune_rows(PruneRowsParams const& params, cudaStream_t stream);

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

// ---- Linear layers ------------------------------------------------------------------------------
// C: columns of the weight, that is, the width of what it multiplies.

inline constexpr int kMaxTaps = 8;
inline constexpr int kStatisticColumns = 64;  // columns of a row that one sum of squares covers
inline constexpr int kScaleColumns = 128;     // columns of a row that one scale of e4m3 covers

// The rows x that a linear layer multiplies: x[r] is row source_row[r] of each tap, side by side.
// With a norm, x[r] is normed over all columns, or the columns of each tap by themselves, and
// rounded to Element, or to e4m3 with a scale for each kScaleColumns columns.
struct LinearInput {
  void const* taps[kMaxTaps] = {};      // num_taps of [., tap_width]  Element
  int32_t const* source_row = nullptr;  // [R]  negative: a mask row, of which no tap is read;
                                        //      null: row r is r
  int32_t const* num_rows = nullptr;    // [1]  rows from here on are neither read nor written
  void const* norm_weight = nullptr;    // [C]  Element; null: no norm
  float const* sum_squares = nullptr;   // [ceil(C / 64), R]  null: the kernel sums them itself
  int num_taps = 0;
  int tap_width = 0;
  int max_rows = 0;  // R
  float eps = 0.0f;
  bool norms_each_tap = false;
  bool is_in_place = false;  // row r is r, and source_row only says which rows are mask rows
  bool is_e4m3 = false;      // round to e4m3; only with a weight that has scales
};

// The matrix of a linear layer: [rows, columns] Element, or e4m3 with a scale for each row.
struct LinearWeight {
  void const* data = nullptr;
  float const* scale = nullptr;  // [rows]  null: the elements are of type Element
  int rows = 0;
  int columns = 0;
};

// Scratch memory of the linear layers of a stream, which take turns in using it: at least
// linear_workspace_bytes. All zero at first; every kernel leaves the counters in it at zero.
struct LinearWorkspace {
  void* data = nullptr;
};

// out[r] = W x[r] for the rows that exist.
struct ProjectTapsParams {
  LinearInput input{};
  LinearWeight weight{};  // [H, C]
  LinearWorkspace workspace{};
  void* out = nullptr;  // [R, H]  Element
};

// residual[r] += W x[r] + bias, and the sums of squares of the result.
struct LinearResidualParams {
  LinearInput input{};
  LinearWeight weight{};  // [H, C]
  LinearWorkspace workspace{};
  void const* bias = nullptr;    // [H]                Element; null: none
  void* residual = nullptr;      // [R, H]             Element
  float* sum_squares = nullptr;  // [ceil(H / 64), R]  null: not wanted
};

// out[r] = silu(G x[r]) * (U x[r])
struct NormSwigluParams {
  LinearInput input{};
  LinearWeight weight{};  // [2I, C], G above U
  LinearWorkspace workspace{};
  void* out = nullptr;  // [R, I]  Element
};

enum class CacheType : int { kElement, kE4M3, kE5M2 };

// Keys or values of one layer: [blocks, Nkv, block_size, D], the last dimension contiguous.
struct PagedCache {
  void* data = nullptr;
  float const* scale = nullptr;  // [1]  what is stored in FP8 is x / scale
  int64_t block_stride = 0;      // all in elements
  int64_t head_stride = 0;
  int64_t slot_stride = 0;
};

// Queries, keys and values of each row: W x[r] + bias, normed per head where there are such norms,
// rotated (queries and keys), and stored. All mask rows of the first layer have the same input, so what
// W makes of it, bias included, can be given: mask_heads.
struct QkvRopeCacheParams {
  LinearInput input{};
  LinearWeight weight{};  // [(Nq + 2 Nkv) D, C], queries above keys above values
  LinearWorkspace workspace{};
  void const* bias = nullptr;          // [(Nq + 2 Nkv) D]  Element; null: none
  float const* mask_heads = nullptr;   // [(Nq + 2 Nkv) D]  null: mask rows are like the others
  void const* q_norm = nullptr;        // [D]               Element; null: none, as k_norm then is
  void const* k_norm = nullptr;        // [D]               Element
  float const* rope = nullptr;         // [P, D]            cosines, then sines
  int64_t const* positions = nullptr;  // [R]               past P the last row of rope is taken
  int64_t const* slots = nullptr;      // [R]               block * block_size + offset; -1: nowhere
  void* q = nullptr;                   // [R, Nq, D]        Element
  PagedCache k_cache{};
  PagedCache v_cache{};
  CacheType cache_type{};
  int num_heads = 0;     // Nq
  int num_kv_heads = 0;  // Nkv
  int head_dim = 0;      // D
  int block_size = 0;
  int num_positions = 0;  // P
};

cudaError_t launch_project_taps(ProjectTapsParams const& params, DType dtype, cudaStream_t stream);
cudaError_t launch_linear_residual(LinearResidualParams const& params, DType dtype,
                                   cudaStream_t stream);
cudaError_t launch_norm_swiglu(NormSwigluParams const& params, DType dtype, cudaStream_t stream);
cudaError_t launch_qkv_rope_cache(QkvRopeCacheParams const& params, DType dtype,
                                  cudaStream_t stream);

// The same for more than 32 rows on sm_90a, which those above leave to these where they can.
cudaError_t launch_wide_project_taps(ProjectTapsParams const& params, DType dtype,
                                     cudaStream_t stream);
cudaError_t launch_wide_linear_residual(LinearResidualParams const& params, DType dtype,
                                        cudaStream_t stream);
cudaError_t launch_wide_norm_swiglu(NormSwigluParams const& params, DType dtype,
                                    cudaStream_t stream);
cudaError_t launch_wide_qkv_rope_cache(QkvRopeCacheParams const& params, DType dtype,
                                       cudaStream_t stream);

// ---- Matrix products of many rows ----------------------------------------------------------------
// On sm_90a alone; elsewhere they are cudaErrorNotSupported.

// With y[r] = W x[r] + bias: out[r] = y[r], or out[r] += y[r] and the sums of squares of the result.
// launch_gemm_swiglu: out[r] = silu(g) * u, where W x[r] is g beside u.
struct GemmParams {
  void const* x = nullptr;            // [R, C]  Element; rows that do not exist may be read
  int32_t const* num_rows = nullptr;  // [1]     rows from here on are not written
  LinearWeight weight{};              // [N, C]  Element; N a multiple of 16, C of 8
  LinearWorkspace workspace{};
  void const* bias = nullptr;    // [N]                     Element; null: none
  void* out = nullptr;           // [R, N], gated [R, N/2]  Element
  float* sum_squares = nullptr;  // [ceil(N / 64), R]       null: not wanted
  int max_rows = 0;              // R
  bool accumulates = false;
};

cudaError_t launch_gemm(GemmParams const& params, DType dtype, cudaStream_t stream);
cudaError_t launch_gemm_swiglu(GemmParams const& params, DType dtype, cudaStream_t stream);

// ---- The head ------------------------------------------------------------------------------------

// The k best tokens and the log-sum-exp of the sampled rows: row n of the results is that of row
// input.source_row[n] of the residual, and -1 and -inf where that is negative. V: rows of the weight.
struct LmHeadTopkParams {
  LinearInput input{};                       // one tap, with a norm; num_rows is not used
  LinearWeight weight{};                     // [V, C]
  int32_t const* vocab_subset = nullptr;     // [S]  ascending rows of the weight; null: all, S = V
  int64_t const* draft_to_target = nullptr;  // [V]  null: ids are rows of the weight
  int64_t const* noise_keys = nullptr;       // [N]  null: no noise, as the next two then are
  int64_t const* noise_positions = nullptr;  // [N]
  float const* temperature = nullptr;        // [N]  0: no noise in this row
  int64_t* ids = nullptr;                    // [N, k]
  float* logits = nullptr;                   // [N, k]
  float* lse = nullptr;                      // [N]
  void* workspace = nullptr;  // lm_head_workspace_bytes, all zero at first, as LinearWorkspace
  int num_samples = 0;        // N
  int num_candidates = 0;     // S
  int top_k = 0;              // k
};

cudaError_t launch_lm_head_topk(LmHeadTopkParams const& params, DType dtype, cudaStream_t stream);

// ---- Attention ----------------------------------------------------------------------------------

// Attention over a paged cache. D: head size; strides of the caches are in elements.
struct PagedAttentionParams {
  void const* q = nullptr;               // [R, Nq, D] Element
  void const* k_cache = nullptr;         // [blocks, Nkv, block_size, D] Cache
  void const* v_cache = nullptr;         // the same
  float const* k_scale = nullptr;        // [1]
  float const* v_scale = nullptr;        // [1]
  int32_t const* block_table = nullptr;  // [B, max_blocks]
  int32_t const* row_start = nullptr;    // [B + 1]
  int64_t const* positions = nullptr;    // [R]
  int64_t const* tree_mask = nullptr;    // [R]    null: causal
  float const* sinks = nullptr;          // [Nq]   null: none
  int32_t const* work = nullptr;         // from plan_attention
  void* workspace = nullptr;             // as AttentionWorkspaceLayout says
  void* out = nullptr;                   // [R, Nq, D] Element
  int64_t k_block_stride = 0;
  int64_t k_head_stride = 0;
  int64_t k_row_stride = 0;
  int64_t v_block_stride = 0;
  int64_t v_head_stride = 0;
  int64_t v_row_stride = 0;
  float softmax_scale = 0.0f;
  int window = 0;  // 0: none
  int num_rows = 0;
  int num_requests = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int num_cache_blocks = 0;
  int block_size = 0;
  int max_blocks = 0;  // of a request
  int num_blocks = 0;  // thread blocks, as in the plan
};

cudaError_t launch_paged_attention(PagedAttentionParams const& params, DType dtype,
                                   CacheType cache_dtype, cudaStream_t stream);

// ---- Rows around a matrix product that is not ours ----------------------------------------------
// What the linear layers do to rows before and after they multiply them, by itself. Rows may have
// any width; they move fastest where it is a multiple of 8, and 16 bytes divide the addresses.

// out[r] = x[r], normed where there is a norm; zeros where the row does not exist.
struct NormRowsParams {
  LinearInput input{};
  void* out = nullptr;  // [R, C]  Element
};

// out[r] = silu(g) * u, where gate_up[r] is g beside u.
struct GateRowsParams {
  void const* gate_up = nullptr;      // [R, 2I]  Element
  int32_t const* num_rows = nullptr;  // [1]      rows from here on are neither read nor written
  void* out = nullptr;                // [R, I]   Element
  int max_rows = 0;                   // R
  int width = 0;                      // I
};

// What follows the product in qkv_rope_cache, for heads of any even size.
struct RopeCacheParams {
  void const* heads = nullptr;         // [R, Nq + 2 Nkv, D]  Element, queries, keys, values
  void const* q_norm = nullptr;        // [D]         Element; null: none, as k_norm then is
  void const* k_norm = nullptr;        // [D]         Element
  float const* rope = nullptr;         // [P, D]      cosines, then sines
  int64_t const* positions = nullptr;  // [R]         past P the last row of rope is taken
  int64_t const* slots = nullptr;      // [R]         block * block_size + offset; -1: nowhere
  int32_t const* num_rows = nullptr;   // [1]         rows from here on are neither read nor written
  void* q = nullptr;                   // [R, Nq, D]  Element
  PagedCache k_cache{};
  PagedCache v_cache{};
  CacheType cache_type{};
  int max_rows = 0;      // R
  int num_heads = 0;     // Nq
  int num_kv_heads = 0;  // Nkv
  int head_dim = 0;      // D
  int block_size = 0;
  int num_positions = 0;  // P
  float eps = 0.0f;
};

cudaError_t launch_norm_rows(NormRowsParams const& params, DType dtype, cudaStream_t stream);
cudaError_t launch_gate_rows(GateRowsParams const& params, DType dtype, cudaStream_t stream);
cudaError_t launch_rope_cache(RopeCacheParams const& params, DType dtype, cudaStream_t stream);

// ---- Trees of drafts and their verification ------------------------------------------------------

inline constexpr int kMaxTreeNodes = 64;  // bits of a mask

// The tree of each request. B: requests, K: depths, k: entries of a depth, N: nodes, M: of a shape.
struct BuildTreeParams {
  int64_t const* ids = nullptr;             // [B * K, k]
  float const* logits = nullptr;            // [B * K, k]
  float const* lse = nullptr;               // [B * K]
  int64_t const* root_tokens = nullptr;     // [B]
  int64_t const* root_positions = nullptr;  // [B]
  int32_t const* shape_parents = nullptr;   // [M]  null: the best nodes, as shape_ranks then is
  int32_t const* shape_ranks = nullptr;     // [M]
  int32_t const* budgets = nullptr;         // [B]  null: N
  int64_t const* noise_keys = nullptr;      // [B]  null: no noise, as temperature then is
  float const* temperature = nullptr;       // [B]  0: no noise for this request
  float const* step_costs = nullptr;        // [N]  null: as many nodes as there can be
  int64_t* candidates = nullptr;            // [B, N]
  int32_t* parents = nullptr;               // [B, N]
  int32_t* depths = nullptr;                // [B, N]
  int64_t* next_token = nullptr;            // [B, N]
  int64_t* next_sibling = nullptr;          // [B, N]
  int64_t* retrieve_index = nullptr;        // [B, N]
  int64_t* mask = nullptr;                  // [B, N]
  int64_t* positions = nullptr;             // [B, N]
  int32_t* num_nodes = nullptr;             // [B]
  int64_t vocab_size = 0;
  float log_discount = 0.0f;
  int num_requests = 0;  // B
  int num_depths = 0;    // K
  int top_k = 0;         // k
  int max_nodes = 0;     // N
  int shape_nodes = 0;   // M
};

cudaError_t launch_build_tree(BuildTreeParams const& params, cudaStream_t stream);

enum class LogitsType : int { kBFloat16, kHalf, kFloat };
enum class VerifyRule : int { kTarget, kRejection, kBlock };

// What each request accepts and emits. R: rows of the logits, V: vocabulary, B: requests, N: nodes,
// K: depths and k: entries of the drafts' law.
struct VerifyParams {
  void const* logits = nullptr;              // [R, V]
  int32_t const* row_start = nullptr;        // [B + 1]
  int64_t const* candidates = nullptr;       // [B, N]
  int64_t const* next_token = nullptr;       // [B, N]  null: a chain, as next_sibling then is
  int64_t const* next_sibling = nullptr;     // [B, N]
  float const* temperature = nullptr;        // [B]     null: 0, and the next two are null
  int64_t const* keys = nullptr;             // [B]
  int64_t const* root_positions = nullptr;   // [B]
  float const* floors = nullptr;             // [R]     null: -inf
  int64_t const* draft_ids = nullptr;        // [B * K, k]  null: drafts were not drawn
  float const* draft_logits = nullptr;       // [B * K, k]
  float const* draft_temperature = nullptr;  // [B]
  int64_t* tokens = nullptr;                 // [B, N]
  int32_t* path = nullptr;                   // [B, N]
  int32_t* num_accepted = nullptr;           // [B]
  int32_t* num_rejected = nullptr;           // [B]
  int32_t* last_row = nullptr;               // [B]
  int64_t* next_tokens = nullptr;            // [B]     kept for requests without rows
  void* workspace = nullptr;                 // verify_workspace_bytes
  VerifyRule rule{};
  bool is_lazy = false;  // rows are read when a walk comes to them
  int num_rows = 0;      // R
  int vocab_size = 0;    // V
  int num_requests = 0;  // B
  int max_nodes = 0;     // N
  int num_depths = 0;    // K
  int top_k = 0;         // k
};

cudaError_t launch_verify(VerifyParams const& params, LogitsType type, cudaStream_t stream);

inline constexpr int kMaxFilteredVocab = 262144;  // or a sum of weights might overflow

// The smallest logit of each row that is kept. R: rows of the logits, V: vocabulary, B: requests.
struct LogitFloorsParams {
  void const* logits = nullptr;        // [R, V]
  int32_t const* row_start = nullptr;  // [B + 1]
  float const* temperature = nullptr;  // [B]
  int32_t const* top_k = nullptr;      // [B]  null: all, as for the next two
  float const* top_p = nullptr;        // [B]
  float const* min_p = nullptr;        // [B]
  float* floors = nullptr;             // [R]
  int num_rows = 0;                    // R
  int vocab_size = 0;                  // V
  int num_requests = 0;                // B
};

cudaError_t launch_logit_floors(LogitFloorsParams const& params, LogitsType type,
                                cudaStream_t stream);

// Penalties for the tokens that have occurred, in place. R: rows of the logits, V: vocabulary, B:
// requests, N: nodes, M: entries of a request's list, whose tokens differ.
struct ApplyPenaltiesParams {
  void* logits = nullptr;                 // [R, V]
  int32_t const* row_start = nullptr;     // [B + 1]
  int64_t const* candidates = nullptr;    // [B, N]
  int32_t const* parents = nullptr;       // [B, N]  null: chains
  int64_t const* token_ids = nullptr;     // [B, M]  negative: none
  int32_t const* token_counts = nullptr;  // [B, M]  in the output; 0: only in the prompt
  float const* repetition = nullptr;      // [B]
  float const* frequency = nullptr;       // [B]
  float const* presence = nullptr;        // [B]
  int num_rows = 0;                       // R
  int vocab_size = 0;                     // V
  int num_requests = 0;                   // B
  int max_nodes = 0;                      // N
  int max_tokens = 0;                     // M
};

cudaError_t launch_apply_penalties(ApplyPenaltiesParams const& params, LogitsType type,
                                   cudaStream_t stream);

// Where the keys and values of the nodes of each path are moved. B: requests, N: nodes, R: rows.
struct CompactCacheParams {
  int32_t const* path = nullptr;       // [B, N]    rows, ascending; -1 past the last
  int32_t const* row_start = nullptr;  // [B + 1]
  int64_t const* slots = nullptr;      // [R]       block * block_size + offset; negative: nowhere
  PagedCache k_cache{};                // strides in bytes, no scale: bytes are moved as they are
  PagedCache v_cache{};
  int num_requests = 0;  // B
  int max_nodes = 0;     // N
  int num_rows = 0;      // R
  int num_kv_heads = 0;  // Nkv
  int head_bytes = 0;    // of D elements
  int num_cache_blocks = 0;
  int block_size = 0;
};

cudaError_t launch_compact_cache(CompactCacheParams const& params, cudaStream_t stream);

}  // namespace p_eagle
