// Trees of drafts, and their verification.

#include <torch/csrc/stable/library.h>

#include <array>
#include <optional>

#include "bindings/checks.h"
#include "bindings/device.h"
#include "bindings/registration.h"
#include "head/tiles.h"
#include "ops.h"
#include "verification/layout.h"

namespace p_eagle {
namespace {

using OptionalTensor = std::optional<Tensor>;

template <class T>
T const* optional_data(char const* op, char const* name, OptionalTensor const& tensor,
                       int32_t device, ScalarType type, std::initializer_list<int64_t> shape) {
  if (!tensor) {
    return nullptr;
  }
  check_tensor(op, name, *tensor, device, type, shape);
  return tensor->const_data_ptr<T>();
}

template <class T>
T* output(char const* op, char const* name, Tensor& tensor, int32_t device, ScalarType type,
          std::initializer_list<int64_t> shape) {
  check_tensor(op, name, tensor, device, type, shape);
  return tensor.mutable_data_ptr<T>();
}

// Both of two arguments, or none.
void check_pair(char const* op, char const* names, OptionalTensor const& a,
                OptionalTensor const& b) {
  STD_TORCH_CHECK(a.has_value() == b.has_value(), op, ": ", names,
                  " must both be given or both be None");
}

void check_triple(char const* op, char const* names, OptionalTensor const& a,
                  OptionalTensor const& b, OptionalTensor const& c) {
  STD_TORCH_CHECK(a.has_value() == b.has_value() && b.has_value() == c.has_value(), op, ": ", names,
                  " must all be given or all be None");
}

// Of the entries [B * K, k] with this name.
int64_t count_depths(char const* op, char const* name, Tensor const& ids, int64_t B) {
  STD_TORCH_CHECK(ids.dim() == 2, op, ": `", name, "` must be 2-D, got ", shape_of(ids));
  int64_t const rows = ids.size(0);
  int64_t const k = ids.size(1);
  STD_TORCH_CHECK(k >= 1 && k <= kMaxTopK, op, ": `", name, "` must have 1 to ", kMaxTopK,
                  " columns, got ", k);
  STD_TORCH_CHECK(B > 0 ? rows % B == 0 : rows == 0, op, ": `", name,
                  "` must have K rows for each of ", B, " requests, got ", rows);
  return B > 0 ? rows / B : 0;
}

void check_nodes(char const* op, Tensor const& candidates) {
  STD_TORCH_CHECK(is_on_device(candidates), op, ": `candidates` must be on ", kDevice);
  STD_TORCH_CHECK(candidates.dim() == 2, op, ": `candidates` must be 2-D, got ",
                  shape_of(candidates));
  int64_t const N = candidates.size(1);
  STD_TORCH_CHECK(N >= 1 && N <= kMaxTreeNodes, op, ": `candidates` must have 1 to ", kMaxTreeNodes,
                  " columns, got ", N);
}

void build_tree(Tensor const& ids, Tensor const& logits, Tensor const& lse,
                Tensor const& root_tokens, Tensor const& root_positions,
                OptionalTensor const& shape_parents, OptionalTensor const& shape_ranks,
                OptionalTensor const& budgets, OptionalTensor const& noise_keys,
                OptionalTensor const& temperature, OptionalTensor const& step_costs,
                double log_discount, int64_t vocab_size, Tensor& candidates, Tensor& parents,
                Tensor& depths, Tensor& next_token, Tensor& next_sibling, Tensor& retrieve_index,
                Tensor& mask, Tensor& positions, Tensor& num_nodes) {
  constexpr char const* kOp = "build_tree";
  check_nodes(kOp, candidates);
  int64_t const B = candidates.size(0);
  int64_t const N = candidates.size(1);
  int64_t const K = count_depths(kOp, "ids", ids, B);
  int64_t const k = ids.size(1);
  int32_t const device = candidates.get_device_index();
  STD_TORCH_CHECK(vocab_size >= 1, kOp, ": `vocab_size` must be at least 1, got ", vocab_size);
  STD_TORCH_CHECK(log_discount <= 0, kOp, ": `log_discount` must be at most 0, got ", log_discount);
  check_pair(kOp, "`shape_parents` and `shape_ranks`", shape_parents, shape_ranks);
  check_pair(kOp, "`noise_keys` and `temperature`", noise_keys, temperature);
  STD_TORCH_CHECK(!noise_keys || shape_parents, kOp,
                  ": drafts that are drawn need a shape, or which of them are in the tree would "
                  "depend on their law, and verification by rejection be biased");
  STD_TORCH_CHECK(!step_costs || !shape_parents, kOp,
                  ": `step_costs` must be None for a tree of a given shape");
  int64_t const M = shape_parents ? shape_parents->numel() : 1;
  STD_TORCH_CHECK(M >= 1 && M <= kMaxTreeNodes, kOp, ": a shape must have 1 to ", kMaxTreeNodes,
                  " nodes, got ", M);

  auto const input = [&](char const* name, Tensor const& tensor, ScalarType type,
                         std::initializer_list<int64_t> shape) {
    check_tensor(kOp, name, tensor, device, type, shape);
  };
  input("ids", ids, ScalarType::Long, {B * K, k});
  input("logits", logits, ScalarType::Float, {B * K, k});
  input("lse", lse, ScalarType::Float, {B * K});
  input("root_tokens", root_tokens, ScalarType::Long, {B});
  input("root_positions", root_positions, ScalarType::Long, {B});
  auto const ints = [&](char const* name, OptionalTensor const& tensor, int64_t size) {
    return optional_data<int32_t>(kOp, name, tensor, device, ScalarType::Int, {size});
  };
  auto const floats = [&](char const* name, OptionalTensor const& tensor, int64_t size) {
    return optional_data<float>(kOp, name, tensor, device, ScalarType::Float, {size});
  };
  auto const wide = [&](char const* name, Tensor& tensor) {
    return output<int64_t>(kOp, name, tensor, device, ScalarType::Long, {B, N});
  };
  auto const narrow = [&](char const* name, Tensor& tensor) {
    return output<int32_t>(kOp, name, tensor, device, ScalarType::Int, {B, N});
  };
  BuildTreeParams const params{
      .ids = ids.const_data_ptr<int64_t>(),
      .logits = logits.const_data_ptr<float>(),
      .lse = lse.const_data_ptr<float>(),
      .root_tokens = root_tokens.const_data_ptr<int64_t>(),
      .root_positions = root_positions.const_data_ptr<int64_t>(),
      .shape_parents = ints("shape_parents", shape_parents, M),
      .shape_ranks = ints("shape_ranks", shape_ranks, M),
      .budgets = ints("budgets", budgets, B),
      .noise_keys =
          optional_data<int64_t>(kOp, "noise_keys", noise_keys, device, ScalarType::Long, {B}),
      .temperature = floats("temperature", temperature, B),
      .step_costs = floats("step_costs", step_costs, N),
      .candidates = wide("candidates", candidates),
      .parents = narrow("parents", parents),
      .depths = narrow("depths", depths),
      .next_token = wide("next_token", next_token),
      .next_sibling = wide("next_sibling", next_sibling),
      .retrieve_index = wide("retrieve_index", retrieve_index),
      .mask = wide("mask", mask),
      .positions = wide("positions", positions),
      .num_nodes = output<int32_t>(kOp, "num_nodes", num_nodes, device, ScalarType::Int, {B}),
      .vocab_size = vocab_size,
      .log_discount = float(log_discount),
      .num_requests = int(B),
      .num_depths = int(K),
      .top_k = int(k),
      .max_nodes = int(N),
      .shape_nodes = int(M),
  };
  if (B == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_build_tree(params, current_stream(kOp, device)));
}

LogitsType to_logits_type(char const* op, ScalarType type) {
  switch (type) {
    case ScalarType::BFloat16: return LogitsType::kBFloat16;
    case ScalarType::Half: return LogitsType::kHalf;
    case ScalarType::Float: return LogitsType::kFloat;
    default:
      STD_TORCH_CHECK(false, op, ": `logits` must have dtype bfloat16, float16 or float32, got ",
                      type);
  }
}

// Rows [R, V] of the target, V of at most `max_columns`.
LogitsType check_logits(char const* op, Tensor const& logits, int32_t device, int64_t max_columns) {
  STD_TORCH_CHECK(logits.dim() == 2, op, ": `logits` must be 2-D, got ", shape_of(logits));
  int64_t const V = logits.size(1);
  LogitsType const type = to_logits_type(op, logits.scalar_type());
  STD_TORCH_CHECK(V >= 1 && V <= max_columns, op, ": `logits` must have 1 to ", max_columns,
                  " columns, got ", V);
  check_tensor(op, "logits", logits, device, logits.scalar_type(), {logits.size(0), V});
  return type;
}

void verify(Tensor const& logits, Tensor const& row_start, Tensor const& candidates,
            OptionalTensor const& next_token, OptionalTensor const& next_sibling,
            OptionalTensor const& temperature, OptionalTensor const& keys,
            OptionalTensor const& root_positions, OptionalTensor const& floors,
            OptionalTensor const& draft_ids, OptionalTensor const& draft_logits,
            OptionalTensor const& draft_temperature, int64_t rule, bool is_lazy, Tensor& tokens,
            Tensor& path, Tensor& num_accepted, Tensor& num_rejected, Tensor& last_row,
            Tensor& next_tokens, Tensor& workspace) {
  constexpr char const* kOp = "verify";
  check_nodes(kOp, candidates);
  int64_t const B = candidates.size(0);
  int64_t const N = candidates.size(1);
  int32_t const device = candidates.get_device_index();
  constexpr int64_t kMaxTiles = 65535;  // blocks of a launch in its second dimension
  LogitsType const type = check_logits(kOp, logits, device, kMaxTiles * kVerifyTile);
  int64_t const R = logits.size(0);
  int64_t const V = logits.size(1);
  check_tensor(kOp, "candidates", candidates, device, ScalarType::Long, {B, N});
  check_tensor(kOp, "row_start", row_start, device, ScalarType::Int, {B + 1});
  check_pair(kOp, "`next_token` and `next_sibling`", next_token, next_sibling);
  check_triple(kOp, "`temperature`, `keys` and `root_positions`", temperature, keys,
               root_positions);
  check_triple(kOp, "`draft_ids`, `draft_logits` and `draft_temperature`", draft_ids, draft_logits,
               draft_temperature);
  STD_TORCH_CHECK(0 <= rule && rule <= int64_t(VerifyRule::kBlock), kOp,
                  ": `rule` must be 0 to 2, got ", rule);
  STD_TORCH_CHECK(VerifyRule(rule) != VerifyRule::kBlock || !next_token, kOp,
                  ": the rule `block` is for chains, got a tree");
  STD_TORCH_CHECK(VerifyRule(rule) == VerifyRule::kTarget || draft_ids, kOp, ": the rule `",
                  VerifyRule(rule) == VerifyRule::kBlock ? "block" : "rejection",
                  "` needs the drafts' law, got no `draft_ids`");
  int64_t const K = draft_ids ? count_depths(kOp, "draft_ids", *draft_ids, B) : 0;
  int64_t const k = draft_ids ? draft_ids->size(1) : 0;

  auto const longs = [&](char const* name, OptionalTensor const& tensor,
                         std::initializer_list<int64_t> shape) {
    return optional_data<int64_t>(kOp, name, tensor, device, ScalarType::Long, shape);
  };
  auto const floats = [&](char const* name, OptionalTensor const& tensor,
                          std::initializer_list<int64_t> shape) {
    return optional_data<float>(kOp, name, tensor, device, ScalarType::Float, shape);
  };
  auto const counts = [&](char const* name, Tensor& tensor) {
    return output<int32_t>(kOp, name, tensor, device, ScalarType::Int, {B});
  };
  check_vector_tensor(kOp, "workspace", workspace, device, ScalarType::Byte, {workspace.numel()});
  int64_t const rows = is_lazy ? B * N : R;
  int64_t const needed = verify_workspace_bytes(rows, V);
  STD_TORCH_CHECK(workspace.numel() >= needed, kOp, ": `workspace` must hold at least ", needed,
                  " bytes for ", rows, " rows of ", V, " logits, got ", workspace.numel());
  VerifyParams const params{
      .logits = logits.const_data_ptr(),
      .row_start = row_start.const_data_ptr<int32_t>(),
      .candidates = candidates.const_data_ptr<int64_t>(),
      .next_token = longs("next_token", next_token, {B, N}),
      .next_sibling = longs("next_sibling", next_sibling, {B, N}),
      .temperature = floats("temperature", temperature, {B}),
      .keys = longs("keys", keys, {B}),
      .root_positions = longs("root_positions", root_positions, {B}),
      .floors = floats("floors", floors, {R}),
      .draft_ids = longs("draft_ids", draft_ids, {B * K, k}),
      .draft_logits = floats("draft_logits", draft_logits, {B * K, k}),
      .draft_temperature = floats("draft_temperature", draft_temperature, {B}),
      .tokens = output<int64_t>(kOp, "tokens", tokens, device, ScalarType::Long, {B, N}),
      .path = output<int32_t>(kOp, "path", path, device, ScalarType::Int, {B, N}),
      .num_accepted = counts("num_accepted", num_accepted),
      .num_rejected = counts("num_rejected", num_rejected),
      .last_row = counts("last_row", last_row),
      .next_tokens =
          output<int64_t>(kOp, "next_tokens", next_tokens, device, ScalarType::Long, {B}),
      .workspace = workspace.mutable_data_ptr(),
      .rule = VerifyRule(rule),
      .is_lazy = is_lazy,
      .num_rows = int(R),
      .vocab_size = int(V),
      .num_requests = int(B),
      .max_nodes = int(N),
      .num_depths = int(K),
      .top_k = int(k),
  };
  if (B == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_verify(params, type, current_stream(kOp, device)));
}

void logit_floors(Tensor const& logits, Tensor const& row_start, Tensor const& temperature,
                  OptionalTensor const& top_k, OptionalTensor const& top_p,
                  OptionalTensor const& min_p, Tensor& floors) {
  constexpr char const* kOp = "logit_floors";
  STD_TORCH_CHECK(is_on_device(temperature), kOp, ": `temperature` must be on ", kDevice);
  STD_TORCH_CHECK(temperature.dim() == 1, kOp, ": `temperature` must be [B], got ",
                  shape_of(temperature));
  int64_t const B = temperature.size(0);
  int32_t const device = temperature.get_device_index();
  LogitsType const type = check_logits(kOp, logits, device, kMaxFilteredVocab);
  int64_t const R = logits.size(0);
  check_tensor(kOp, "row_start", row_start, device, ScalarType::Int, {B + 1});
  check_tensor(kOp, "temperature", temperature, device, ScalarType::Float, {B});
  auto const floats = [&](char const* name, OptionalTensor const& tensor) {
    return optional_data<float>(kOp, name, tensor, device, ScalarType::Float, {B});
  };
  LogitFloorsParams const params{
      .logits = logits.const_data_ptr(),
      .row_start = row_start.const_data_ptr<int32_t>(),
      .temperature = temperature.const_data_ptr<float>(),
      .top_k = optional_data<int32_t>(kOp, "top_k", top_k, device, ScalarType::Int, {B}),
      .top_p = floats("top_p", top_p),
      .min_p = floats("min_p", min_p),
      .floors = output<float>(kOp, "floors", floors, device, ScalarType::Float, {R}),
      .num_rows = int(R),
      .vocab_size = int(logits.size(1)),
      .num_requests = int(B),
  };
  if (R == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_logit_floors(params, type, current_stream(kOp, device)));
}

void apply_penalties(Tensor& logits, Tensor const& row_start, Tensor const& candidates,
                     OptionalTensor const& parents, Tensor const& token_ids,
                     Tensor const& token_counts, Tensor const& repetition, Tensor const& frequency,
                     Tensor const& presence) {
  constexpr char const* kOp = "apply_penalties";
  check_nodes(kOp, candidates);
  STD_TORCH_CHECK(token_ids.dim() == 2, kOp, ": `token_ids` must be 2-D, got ",
                  shape_of(token_ids));
  int64_t const B = candidates.size(0);
  int64_t const N = candidates.size(1);
  int64_t const M = token_ids.size(1);
  int32_t const device = candidates.get_device_index();
  LogitsType const type = check_logits(kOp, logits, device, INT32_MAX);
  check_tensor(kOp, "row_start", row_start, device, ScalarType::Int, {B + 1});
  check_tensor(kOp, "candidates", candidates, device, ScalarType::Long, {B, N});
  check_tensor(kOp, "token_ids", token_ids, device, ScalarType::Long, {B, M});
  check_tensor(kOp, "token_counts", token_counts, device, ScalarType::Int, {B, M});
  auto const floats = [&](char const* name, Tensor const& tensor) {
    check_tensor(kOp, name, tensor, device, ScalarType::Float, {B});
    return tensor.const_data_ptr<float>();
  };
  ApplyPenaltiesParams const params{
      .logits = logits.mutable_data_ptr(),
      .row_start = row_start.const_data_ptr<int32_t>(),
      .candidates = candidates.const_data_ptr<int64_t>(),
      .parents = optional_data<int32_t>(kOp, "parents", parents, device, ScalarType::Int, {B, N}),
      .token_ids = token_ids.const_data_ptr<int64_t>(),
      .token_counts = token_counts.const_data_ptr<int32_t>(),
      .repetition = floats("repetition", repetition),
      .frequency = floats("frequency", frequency),
      .presence = floats("presence", presence),
      .num_rows = int(logits.size(0)),
      .vocab_size = int(logits.size(1)),
      .num_requests = int(B),
      .max_nodes = int(N),
      .max_tokens = int(M),
  };
  if (B == 0 || params.num_rows == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_apply_penalties(params, type, current_stream(kOp, device)));
}

// Of a cache in bytes.
PagedCache check_moved_cache(char const* name, Tensor& cache, int32_t device, ScalarType type,
                             std::initializer_list<int64_t> shape) {
  constexpr char const* kOp = "compact_cache";
  check_strided_tensor(kOp, name, cache, device, type, shape);
  STD_TORCH_CHECK(cache.stride(3) == 1, kOp, ": `", name,
                  "` must be contiguous in its last dimension, got strides ", strides_of(cache));
  int64_t const bytes = int64_t(cache.element_size());
  return {.data = cache.mutable_data_ptr(),
          .block_stride = cache.stride(0) * bytes,
          .head_stride = cache.stride(1) * bytes,
          .slot_stride = cache.stride(2) * bytes};
}

void compact_cache(Tensor const& path, Tensor const& row_start, Tensor const& slots,
                   Tensor& k_cache, Tensor& v_cache) {
  constexpr char const* kOp = "compact_cache";
  STD_TORCH_CHECK(is_on_device(path), kOp, ": `path` must be on ", kDevice);
  STD_TORCH_CHECK(path.dim() == 2, kOp, ": `path` must be 2-D, got ", shape_of(path));
  STD_TORCH_CHECK(slots.dim() == 1, kOp, ": `slots` must be [R], got ", shape_of(slots));
  STD_TORCH_CHECK(k_cache.dim() == 4, kOp,
                  ": `k_cache` must be [blocks, Nkv, block_size, D], got shape ",
                  shape_of(k_cache));
  int64_t const B = path.size(0);
  int64_t const N = path.size(1);
  int64_t const R = slots.size(0);
  int32_t const device = path.get_device_index();
  STD_TORCH_CHECK(N >= 1 && N <= kMaxTreeNodes, kOp, ": `path` must have 1 to ", kMaxTreeNodes,
                  " columns, got ", N);
  auto const [blocks, heads, block_size, D] =
      std::array{k_cache.size(0), k_cache.size(1), k_cache.size(2), k_cache.size(3)};
  ScalarType const type = k_cache.scalar_type();
  check_tensor(kOp, "path", path, device, ScalarType::Int, {B, N});
  check_tensor(kOp, "row_start", row_start, device, ScalarType::Int, {B + 1});
  check_tensor(kOp, "slots", slots, device, ScalarType::Long, {R});
  CompactCacheParams const params{
      .path = path.const_data_ptr<int32_t>(),
      .row_start = row_start.const_data_ptr<int32_t>(),
      .slots = slots.const_data_ptr<int64_t>(),
      .k_cache =
          check_moved_cache("k_cache", k_cache, device, type, {blocks, heads, block_size, D}),
      .v_cache =
          check_moved_cache("v_cache", v_cache, device, type, {blocks, heads, block_size, D}),
      .num_requests = int(B),
      .max_nodes = int(N),
      .num_rows = int(R),
      .num_kv_heads = int(heads),
      .head_bytes = int(D * int64_t(k_cache.element_size())),
      .num_cache_blocks = int(blocks),
      .block_size = int(block_size),
  };
  if (B == 0 || heads * D == 0) {
    return;
  }
  DeviceGuard const guard(device);
  check_launch(kOp, launch_compact_cache(params, current_stream(kOp, device)));
}

constexpr CudaOp kOps[] = {
    {"compact_cache", TORCH_BOX(&compact_cache)},
    {"build_tree", TORCH_BOX(&build_tree)},
    {"verify", TORCH_BOX(&verify)},
    {"logit_floors", TORCH_BOX(&logit_floors)},
    {"apply_penalties", TORCH_BOX(&apply_penalties)},
};

}  // namespace

std::span<CudaOp const> tree_ops() { return kOps; }

}  // namespace p_eagle
