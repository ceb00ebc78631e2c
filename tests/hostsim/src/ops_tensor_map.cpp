// Instructions about tensor maps themselves: tensormap.replace, tensormap.cp_fenceproxy, and the
// prefetch and the fence, which need the address of a map.

#include <bit>
#include <cstring>

#include "ops_memory.h"
#include "ops_tensor_copy.h"

namespace hostsim {
namespace {

// ---- prefetch.tensormap, fence.proxy.tensormap --------------------------------------------------

Flow prefetch_map(Execution& x, Instruction const& in, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) {
    read_tensor_map(x.thread(lane), x.address(in.operands[0], lane), "prefetch.tensormap");
  });
  return Flow::kNext;
}

void bind_prefetch(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take_any({"param", "const"});
  modifiers.take_one({"tensormap"});
  modifiers.finish();
  in.run = prefetch_map;
}

Flow no_effect(Execution&, Instruction const&, Lanes) { return Flow::kNext; }

// Synchronises with tensormap.cp_fenceproxy of the same map, which is a release.
Flow acquire_map(Execution& x, Instruction const& in, Lanes lanes) {
  for_each_lane(lanes, [&](int lane) {
    Thread& thread = x.thread(lane);
    uint64_t const address = x.address(in.operands[0], lane);
    synchronize_read(thread, reinterpret_cast<void const*>(address), kWideScope,
                     MemoryOrder::kAcquire);
    read_tensor_map(thread, address, "fence.proxy.tensormap");
  });
  return Flow::kNext;
}

// The release form has no operands; the acquire form names the map.
void bind_fence(Instruction& in) {
  Modifiers modifiers(in);
  modifiers.take("proxy");
  modifiers.take("tensormap::generic");
  bool const acquires = modifiers.take_one({"release", "acquire"}) == 1;
  take_scope(modifiers);
  modifiers.finish();
  if (in.operands.size() != (acquires ? 2u : 0u)) {
    modifiers.unsupported("number of operands");
  }
  in.run = acquires ? acquire_map : no_effect;
}

// ---- tensormap.replace --------------------------------------------------------------------------

enum class Field {
  kAddress,
  kRank,
  kBox,
  kSize,
  kStride,
  kElementStride,
  kType,
  kInterleave,
  kSwizzle,
  kFill
};

struct ReplaceDetail : Detail {
  Field field = Field::kAddress;
  Space space = Space::kGeneric;
};

// By the immediate operand of .elemtype, which counts otherwise than CUtensorMapDataType.
Type element_type(uint64_t value) {
  static constexpr Type kTypes[] = {Type::kU8,  Type::kU16, Type::kU32, Type::kS32,
                                    Type::kU64, Type::kS64, Type::kF16, Type::kF32};
  if (value < std::size(kTypes)) {
    return kTypes[value];
  }
  if (value != 9 && value != 10) {
    fault("tma", "tensormap.replace: the emulator does not know element type %llu",
          (unsigned long long)value);
  }
  return value == 9 ? Type::kF64 : Type::kBF16;
}

void replace_field(TensorMap& map, Field field, size_t index, uint64_t value) {
  switch (field) {
    case Field::kAddress: map.address = value; return;
    case Field::kRank: map.rank = uint8_t(value + 1); return;  // PTX: "ones less than the rank"
    case Field::kBox: map.box.at(index) = uint16_t(value); return;
    case Field::kSize: map.last.at(index) = uint32_t(value) - 1; return;
    case Field::kStride: map.strides.at(index) = value; return;
    case Field::kElementStride: map.element_strides.at(index) = uint8_t(value); return;
    case Field::kType: map.type = element_type(value); return;
    case Field::kFill: map.fills_nan = value != 0; return;
    case Field::kSwizzle: map.swizzle = uint8_t(value); break;
    case Field::kInterleave: break;
  }
  if (value > (field == Field::kSwizzle ? 3u : 0u)) {
    fault("tma", "tensormap.replace: the emulator does not know %s %llu",
          field == Field::kSwizzle ? "swizzle mode" : "interleave layout",
          (unsigned long long)value);
  }
}

bool has_index(Field field) {
  return field == Field::kBox || field == Field::kSize || field == Field::kStride ||
         field == Field::kElementStride;
}

char* touch_map(Execution const& x, uint64_t address, int lane, bool shared, Access access,
                char const* what) {
  if (address % TensorMap::kAlignment != 0) {
    fault("align", "%s: a tensor map at 0x%llx, not aligned to 64 bytes", what,
          (unsigned long long)address);
  }
  Actor const actor = plain_actor(x.thread(lane));
  return shared ? touch_shared(actor, uint32_t(address), sizeof(TensorMap), access, what, false)
                : touch(actor, address, sizeof(TensorMap), access, what);
}

Flow run_replace(Execution& x, Instruction const& in, Lanes lanes) {
  auto const& detail = in.as<ReplaceDetail>();
  bool const indexed = has_index(detail.field);
  for_each_lane(lanes, [&](int lane) {
    char* const bytes = touch_map(x, x.address(in.operands[0], lane), lane, is_shared(detail.space),
                                  Access::kReadWrite, "tensormap.replace");
    uint64_t const index = indexed ? x.in(in.operands[1])[lane] : 0;
    uint64_t const limit = detail.field == Field::kStride ? kMaxTensorRank - 1 : kMaxTensorRank;
    if (index >= limit) {
      fault("tma", "tensormap.replace: dimension %llu of at most %llu", (unsigned long long)index,
            (unsigned long long)limit);
    }
    TensorMap map;
    std::memcpy(&map, bytes, sizeof map);
    replace_field(map, detail.field, size_t(index), x.in(in.operands[indexed ? 2 : 1])[lane]);
    std::memcpy(bytes, &map, sizeof map);
  });
  return Flow::kNext;
}

void bind_replace(Instruction& in) {
  Modifiers modifiers(in);
  auto detail = std::make_unique<ReplaceDetail>();
  modifiers.take("replace");
  modifiers.take_one({"tile"});
  detail->field = Field(modifiers.take_one({"global_address", "rank", "box_dim", "global_dim",
                                            "global_stride", "element_stride", "elemtype",
                                            "interleave_layout", "swizzle_mode", "fill_mode"}));
  detail->space = take_space(modifiers);
  modifiers.take_one({"b1024"});
  modifiers.take_one({"b32", "b64"});
  modifiers.finish();
  if (in.operands.size() != (has_index(detail->field) ? 3u : 2u)) {
    modifiers.unsupported("number of operands");
  }
  in.run = run_replace;
  in.detail = std::move(detail);
}

// ---- tensormap.cp_fenceproxy --------------------------------------------------------------------

// A warp copies one map from shared to global memory, as a release.
Flow run_copy(Execution& x, Instruction const& in, Lanes lanes) {
  if (!x.converged(x.warp.live())) {
    return Flow::kConverge;
  }
  constexpr char const* kName = "tensormap.cp_fenceproxy";
  int const lane = std::countr_zero(lanes);
  char* const to =
      touch_map(x, x.address(in.operands[0], lane), lane, false, Access::kWrite, kName);
  char const* const from =
      touch_map(x, x.address(in.operands[1], lane), lane, true, Access::kRead, kName);
  std::memcpy(to, from, sizeof(TensorMap));
  for_each_lane(
      lanes, [&](int l) { synchronize_write(x.thread(l), to, kWideScope, MemoryOrder::kRelease); });
  return Flow::kNext;
}

void bind_copy(Instruction& in) {
  Modifiers modifiers(in);
  for (char const* word : {"cp_fenceproxy", "global", "shared::cta", "tensormap::generic",
                           "release", "sync", "aligned"}) {
    modifiers.take_one({word});
  }
  take_scope(modifiers);
  modifiers.finish();
  if (in.operands.size() != 3) {
    modifiers.unsupported("number of operands");
  }
  in.run = run_copy;
  in.splits = true;
}

}  // namespace

TensorMap read_tensor_map(Thread& thread, uint64_t address, char const* what) {
  if (address % TensorMap::kAlignment != 0) {
    fault("align", "%s: a tensor map at 0x%llx, not aligned to 64 bytes", what,
          (unsigned long long)address);
  }
  TensorMap map;
  std::memcpy(&map, touch(plain_actor(thread), address, sizeof map, Access::kRead, what),
              sizeof map);
  if (map.mark != TensorMap::kMark) {
    fault("tma", "%s: there is no tensor map at 0x%llx", what, (unsigned long long)address);
  }
  // tensormap.replace may have made it a wrong one.
  if (std::string const error = find_error(map); !error.empty()) {
    fault("tma", "%s: the tensor map is invalid: %s", what, error.c_str());
  }
  return map;
}

void add_tensor_map(BinderTable& table) {
  for (char const* key :
       {"prefetch.tensormap", "prefetch.param.tensormap", "prefetch.const.tensormap"}) {
    table[key] = bind_prefetch;
  }
  table["fence.proxy.tensormap::generic"] = bind_fence;
  table["tensormap.replace"] = bind_replace;
  table["tensormap.cp_fenceproxy"] = bind_copy;
}

}  // namespace hostsim
