// PTX after linking: kernels whose instructions can run, and the module they share.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "instruction.h"

namespace hostsim {

// Registers that are constant while a warp runs; %clock and the like are instructions instead.
enum class Special : uint8_t {
  kTidX,
  kTidY,
  kTidZ,
  kNtidX,
  kNtidY,
  kNtidZ,
  kCtaidX,
  kCtaidY,
  kCtaidZ,
  kNctaidX,
  kNctaidY,
  kNctaidZ,
  kLaneid,
  kWarpid,
  kNwarpid,
  kSmid,
  kNsmid,
  kGridid,
  kLanemaskEq,
  kLanemaskLe,
  kLanemaskLt,
  kLanemaskGe,
  kLanemaskGt,
  kClusterCtaidX,
  kClusterCtaidY,
  kClusterCtaidZ,
  kClusterNctaidX,
  kClusterNctaidY,
  kClusterNctaidZ,
  kClusteridX,
  kClusteridY,
  kClusteridZ,
  kNclusteridX,
  kNclusteridY,
  kNclusteridZ,
  kClusterCtarank,
  kClusterNctarank,
  kIsExplicitCluster,
  kDynamicSmemSize,
  kTotalSmemSize,
};

struct SharedVariable {
  std::string name;
  uint32_t size = 0;  // 0: extern, the dynamic shared memory
  uint32_t alignment = 16;
};

struct Parameter {
  uint32_t offset = 0;
  uint32_t size = 0;
};

struct Kernel {
  std::string name;  // mangled
  std::vector<Instruction> code;
  int num_rows = 0;

  // Rows that hold a value before the first instruction.
  struct Constant {
    int row;
    uint64_t value;
  };  // immediates, global variables
  struct SpecialRow {
    int row;
    Special special;
  };
  struct SharedAddress {
    int row;
    int variable;
  };  // index into shared_variables
  struct LocalAddress {
    int row;
    uint32_t offset;
  };  // in the thread's local memory
  struct ParameterAddress {
    int row;
    uint32_t offset;
  };  // in the launch's parameters
  std::vector<Constant> constants;
  std::vector<SpecialRow> specials;
  std::vector<SharedAddress> shared_addresses;
  std::vector<LocalAddress> local_addresses;
  std::vector<ParameterAddress> parameter_addresses;

  std::vector<SharedVariable> shared_variables;
  std::vector<Parameter> parameters;
  uint32_t parameter_bytes = 0;
  uint32_t local_bytes = 0;
  int max_threads = 1024;                // .maxntid or .reqntid, as a product
  uint32_t cluster[3] = {0, 0, 0};       // .reqnctapercluster; 0 where not given
  std::vector<std::string> unsupported;  // what the emulator does not know; an error at launch
};

// A variable at module scope: __device__, __constant__, string literals.
struct VariableMemory {
  static constexpr size_t kAlignment = 256;  // as cudaMalloc and the GPU's linker give
  void operator()(char* data) const;         // unregisters the buffer and frees it
};

struct GlobalVariable {
  std::string name;
  std::unique_ptr<char[], VariableMemory> data;  // a buffer of that name while the module lives
  size_t size = 0;
  bool constant = false;
};

struct Module {
  std::unordered_map<std::string, std::unique_ptr<Kernel>> kernels;
  std::unordered_map<std::string, GlobalVariable> variables;
  std::vector<std::unique_ptr<Location>> locations;  // owns what instructions point to
  std::vector<std::unique_ptr<std::string>> file_names;
};

// Parses, links and binds PTX text. Throws std::runtime_error for text that is no PTX; instructions
// that the emulator does not know go to Kernel::unsupported.
std::unique_ptr<Module> load_module(std::string const& ptx);

}  // namespace hostsim
