// The functions that host objects made by nvcc call before main(): they hand over a "fatbin", which
// holds the device code of one source file, and name the kernels and variables in it.
//
// A fatbin is a header and then entries, each a header and a payload. Only what is needed of the
// headers is read: the sizes, and whether the payload is PTX.

#include "fatbin.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string_view>

#include "device_limits.h"

namespace hostsim {
namespace {

struct FatbinWrapper {
  int magic;
  int version;
  void const* fatbin;
  void const* filename;
};

struct FatbinHeader {
  uint32_t magic;
  uint16_t version;
  uint16_t header_size;
  uint64_t payload_size;  // of all entries
};

struct FatbinEntry {
  uint16_t kind;
  uint16_t version;
  uint32_t header_size;
  uint64_t payload_size;
};

constexpr uint32_t kFatbinMagic = 0xBA55ED50;
constexpr uint16_t kKindPtx = 1;

template <class T>
T read(char const* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

std::string_view ptx_payload(char const* payload, size_t size) {
  std::string_view const text(payload, strnlen(payload, size));
  if (text.find(".version") == std::string_view::npos) {
    throw std::runtime_error(
        "the PTX in the object is compressed; compile with -Xfatbin=-compress-mode=none");
  }
  return text;
}

std::string_view find_ptx(void const* fatbin) {
  char const* bytes = static_cast<char const*>(fatbin);
  auto const header = read<FatbinHeader>(bytes);
  if (header.magic != kFatbinMagic) {
    throw std::runtime_error("the object's device code has an unknown format");
  }
  char const* const end = bytes + header.header_size + header.payload_size;
  for (bytes += header.header_size; bytes < end;) {
    auto const entry = read<FatbinEntry>(bytes);
    char const* const payload = bytes + entry.header_size;
    if (entry.kind == kKindPtx) {
      return ptx_payload(payload, entry.payload_size);
    }
    bytes = payload + entry.payload_size;
  }
  throw std::runtime_error(
      "the object holds no PTX; compile with -gencode arch=compute_90a,code=compute_90a");
}

// The device code of one source file.
struct Binary {
  void const* fatbin = nullptr;
  std::unique_ptr<Module> module;

  Module& load() {
    if (module == nullptr) {
      module = load_module(std::string(find_ptx(fatbin)));
    }
    return *module;
  }
};

struct KernelEntry {
  Binary* binary = nullptr;
  std::string name;  // mangled
  RegisteredKernel registered;
};

struct VariableEntry {
  Binary* binary = nullptr;
  std::string name;
};

// Never destroyed: host objects unregister at exit in an order of their own.
struct Registry {
  std::vector<std::unique_ptr<Binary>> binaries;
  std::unordered_map<void const*, KernelEntry> kernels;
  std::unordered_map<void const*, VariableEntry> variables;
};

Registry& registry() {
  static auto* const r = new Registry;
  return *r;
}

uint32_t sum_static_shared(Kernel const& kernel) {
  uint32_t bytes = 0;
  for (SharedVariable const& variable : kernel.shared_variables) {
    bytes += variable.size;
  }
  return bytes;
}

}  // namespace

RegisteredKernel* find_kernel(void const* host_function) {
  auto const found = registry().kernels.find(host_function);
  if (found == registry().kernels.end()) {
    return nullptr;
  }
  KernelEntry& entry = found->second;
  if (entry.registered.kernel == nullptr) {
    Module const& module = entry.binary->load();
    auto const kernel = module.kernels.find(entry.name);
    if (kernel == module.kernels.end()) {
      throw std::runtime_error("the PTX has no kernel " + entry.name);
    }
    RegisteredKernel& registered = entry.registered;
    registered.kernel = kernel->second.get();
    registered.static_shared = sum_static_shared(*registered.kernel);
    registered.max_dynamic_shared =
        std::max(0, kDefaultSharedPerBlock - int(registered.static_shared));
  }
  return &entry.registered;
}

GlobalVariable* find_variable(void const* host_symbol) {
  auto const found = registry().variables.find(host_symbol);
  if (found == registry().variables.end()) {
    return nullptr;
  }
  Module& module = found->second.binary->load();
  auto const variable = module.variables.find(found->second.name);
  if (variable == module.variables.end()) {
    throw std::runtime_error("the PTX has no variable " + found->second.name);
  }
  return &variable->second;
}

}  // namespace hostsim

// ---- What nvcc's host code calls ------------------------------------------------------------------

extern "C" {

void** __cudaRegisterFatBinary(void* wrapper) {
  auto binary = std::make_unique<hostsim::Binary>();
  binary->fatbin = static_cast<hostsim::FatbinWrapper const*>(wrapper)->fatbin;
  auto& binaries = hostsim::registry().binaries;
  binaries.push_back(std::move(binary));
  return reinterpret_cast<void**>(binaries.back().get());
}

void __cudaRegisterFatBinaryEnd(void**) {}

// The process is about to end; what it registered ends with it.
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void** handle, char const* host_function, char*, char const* name, int,
                            uint3*, uint3*, dim3*, dim3*, int*) {
  auto* const binary = reinterpret_cast<hostsim::Binary*>(handle);
  hostsim::registry().kernels[host_function] = {binary, name, {}};
}

void __cudaRegisterVar(void** handle, char* host_symbol, char*, char const* name, int, size_t, int,
                       int) {
  auto* const binary = reinterpret_cast<hostsim::Binary*>(handle);
  hostsim::registry().variables[host_symbol] = {binary, name};
}

}  // extern "C"
