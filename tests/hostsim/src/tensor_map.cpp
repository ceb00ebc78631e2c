#include "tensor_map.h"

#include <cuda.h>

#include <bit>
#include <cstring>
#include <optional>

#include "report.h"

namespace hostsim {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));

uint32_t TensorMap::num_rows() const {
  uint32_t rows = 1;
  for (int i = 1; i < rank; ++i) {
    rows *= uint32_t(extent(i));
  }
  return rows;
}

namespace {

constexpr uint64_t kMaxStride = uint64_t(1) << 40;
constexpr uint64_t kMaxDimension = uint64_t(1) << 32;
constexpr int kMaxBox = 256;
constexpr int kMaxElementStride = 8;
constexpr uint32_t kChunkBytes = 16;

std::string indexed(char const* name, int i, uint64_t value, char const* rule) {
  return std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(value) + ", " +
         rule;
}

std::string find_dimension_error(TensorMap const& map, int i) {
  if (i + 1 < map.rank) {
    uint64_t const stride = map.strides[size_t(i)];
    if (stride % kChunkBytes != 0 || stride >= kMaxStride) {
      return indexed("globalStrides", i, stride, "not a multiple of 16 below 2^40");
    }
  }
  if (int const box = map.box[size_t(i)]; box == 0 || box > kMaxBox) {
    return indexed("boxDim", i, uint64_t(box), "not in 1..256");
  }
  if (int const stride = map.element_strides[size_t(i)];
      stride == 0 || stride > kMaxElementStride) {
    return indexed("elementStrides", i, uint64_t(stride), "not in 1..8");
  }
  return "";
}

}  // namespace

std::string find_error(TensorMap const& map) {
  if (map.rank == 0 || map.rank > kMaxTensorRank) {
    return "tensorRank is " + std::to_string(map.rank) + ", not in 1..5";
  }
  if (map.address % kChunkBytes != 0) {
    return "globalAddress is not a multiple of 16 bytes";
  }
  for (int i = 0; i < map.rank; ++i) {
    if (std::string error = find_dimension_error(map, i); !error.empty()) {
      return error;
    }
  }
  std::string const inner = "the box is " + std::to_string(map.row_bytes()) + " bytes wide, ";
  if (map.row_bytes() % kChunkBytes != 0) {
    return inner + "not a multiple of 16";
  }
  if (map.swizzle != 0 && map.row_bytes() > map.swizzle_span()) {
    return inner + "more than the swizzle's " + std::to_string(map.swizzle_span());
  }
  if (map.fills_nan && !is_float(map.type)) {
    return std::string("out-of-bounds elements of type ") + type_name(map.type) + " cannot be NaN";
  }
  return "";
}

// ---- The driver's function ----------------------------------------------------------------------

namespace {

std::optional<Type> element_type(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return Type::kU8;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16: return Type::kU16;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32: return Type::kU32;
    case CU_TENSOR_MAP_DATA_TYPE_INT32: return Type::kS32;
    case CU_TENSOR_MAP_DATA_TYPE_UINT64: return Type::kU64;
    case CU_TENSOR_MAP_DATA_TYPE_INT64: return Type::kS64;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16: return Type::kF16;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32: return Type::kF32;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return Type::kF64;
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return Type::kBF16;
    default: return std::nullopt;
  }
}

// What is neither wrong nor known to the emulator; "" if nothing.
std::string find_unsupported(CUtensorMapDataType type, CUtensorMapInterleave interleave,
                             CUtensorMapSwizzle swizzle) {
  if (!element_type(type)) {
    return "CUtensorMapDataType " + std::to_string(int(type));
  }
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) {
    return "CUtensorMapInterleave " + std::to_string(int(interleave));
  }
  if (swizzle > CU_TENSOR_MAP_SWIZZLE_128B) {
    return "CUtensorMapSwizzle " + std::to_string(int(swizzle));
  }
  return "";
}

std::string find_enum_error(CUtensorMapDataType type, CUtensorMapInterleave interleave,
                            CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion,
                            CUtensorMapFloatOOBfill fill) {
  auto const is_in = [](auto value, auto last) { return int(value) >= 0 && value <= last; };
  if (!is_in(type, CU_TENSOR_MAP_DATA_TYPE_16U6_ALIGN16B)) {
    return "no CUtensorMapDataType " + std::to_string(int(type));
  }
  if (!is_in(interleave, CU_TENSOR_MAP_INTERLEAVE_32B)) {
    return "no CUtensorMapInterleave " + std::to_string(int(interleave));
  }
  if (!is_in(swizzle, CU_TENSOR_MAP_SWIZZLE_128B_ATOM_64B)) {
    return "no CUtensorMapSwizzle " + std::to_string(int(swizzle));
  }
  if (!is_in(promotion, CU_TENSOR_MAP_L2_PROMOTION_L2_256B)) {
    return "no CUtensorMapL2promotion " + std::to_string(int(promotion));
  }
  if (!is_in(fill, CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA)) {
    return "no CUtensorMapFloatOOBfill " + std::to_string(int(fill));
  }
  return "";
}

std::string find_dimension_range_error(uint32_t rank, uint64_t const* dimensions,
                                       uint32_t const* box, uint32_t const* element_strides) {
  if (rank == 0 || rank > kMaxTensorRank) {
    return "tensorRank is " + std::to_string(rank) + ", not in 1..5";
  }
  // Those that a TensorMap cannot even hold.
  for (int i = 0; i < int(rank); ++i) {
    if (dimensions[i] == 0 || dimensions[i] > kMaxDimension) {
      return indexed("globalDim", i, dimensions[i], "not in 1..2^32");
    }
    if (box[i] > kMaxBox) {
      return indexed("boxDim", i, box[i], "not in 1..256");
    }
    if (element_strides[i] > kMaxElementStride) {
      return indexed("elementStrides", i, element_strides[i], "not in 1..8");
    }
  }
  return "";
}

CUresult refuse(std::string const& error) {
  report("tma", "cuTensorMapEncodeTiled: %s", error.c_str());
  return CUDA_ERROR_INVALID_VALUE;
}

}  // namespace
}  // namespace hostsim

extern "C" CUresult CUDAAPI cuTensorMapEncodeTiled(
    CUtensorMap* result, CUtensorMapDataType type, cuuint32_t rank, void* address,
    cuuint64_t const* dimensions, cuuint64_t const* strides, cuuint32_t const* box,
    cuuint32_t const* element_strides, CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
    CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  using namespace hostsim;
  bool const has_arrays = dimensions != nullptr && box != nullptr && element_strides != nullptr &&
                          (strides != nullptr || rank == 1);
  if (result == nullptr || reinterpret_cast<uintptr_t>(result) % TensorMap::kAlignment != 0) {
    return refuse("tensorMap is not aligned to 64 bytes");
  }
  if (!has_arrays) {
    return refuse("an array is missing");
  }
  std::string error = find_enum_error(type, interleave, swizzle, promotion, fill);
  if (error.empty()) {
    error = find_dimension_range_error(rank, dimensions, box, element_strides);
  }
  if (!error.empty()) {
    return refuse(error);
  }
  if (std::string const unknown = find_unsupported(type, interleave, swizzle); !unknown.empty()) {
    report("tma", "cuTensorMapEncodeTiled: the emulator does not know %s", unknown.c_str());
    return CUDA_ERROR_NOT_SUPPORTED;
  }

  TensorMap map;
  map.rank = uint8_t(rank);
  map.type = *element_type(type);
  map.swizzle = uint8_t(swizzle);
  map.fills_nan = fill == CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA;
  map.address = reinterpret_cast<uint64_t>(address);
  for (size_t i = 0; i < rank; ++i) {
    map.last[i] = uint32_t(dimensions[i] - 1);
    map.box[i] = uint16_t(box[i]);
    map.element_strides[i] = uint8_t(element_strides[i]);
    if (i + 1 < rank) {
      map.strides[i] = strides[i];
    }
  }
  error = find_error(map);
  if (!error.empty()) {
    return refuse(error);
  }
  std::memcpy(result, &map, sizeof map);
  return CUDA_SUCCESS;
}
