// What Python calls, by ctypes: see tests/sim/emulator.py. Texts are JSON, and live until the next
// call of the same function.

#include <cuda_runtime_api.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "machine.h"
#include "report.h"
#include "runtime.h"

namespace hostsim {
namespace {

// ---- JSON -----------------------------------------------------------------------------------------

std::string quote(std::string const& text) {
  std::string out = "\"";
  for (char const c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
    }
    bool const is_control = static_cast<unsigned char>(c) < 0x20;
    out += is_control ? ' ' : c;
  }
  return out + '"';
}

// Members of an object, or elements of an array, one by one.
class JsonWriter {
 public:
  explicit JsonWriter(char open) : text_(1, open), close_(open == '{' ? '}' : ']') {}

  JsonWriter& element(std::string const& json) {
    text_ += (text_.size() > 1 ? "," : "") + json;
    return *this;
  }
  JsonWriter& member(std::string const& name, std::string const& json) {
    return element(quote(name) + ":" + json);
  }
  JsonWriter& member(std::string const& name, uint64_t value) {
    return member(name, std::to_string(value));
  }
  JsonWriter& member(std::string const& name, bool value) {
    return member(name, std::string(value ? "true" : "false"));
  }
  JsonWriter& member(std::string const& name, Dim3 size) {
    JsonWriter array('[');
    for (uint32_t const extent : {size.x, size.y, size.z}) {
      array.element(std::to_string(extent));
    }
    return member(name, array.done());
  }
  std::string done() const { return text_ + close_; }

 private:
  std::string text_;
  char close_;
};

std::string to_json(Report const& report) {
  return JsonWriter('{')
      .member("kind", quote(report.kind))
      .member("message", quote(report.message))
      .member("where", quote(report.where))
      .done();
}

std::string to_json(Traffic const& traffic) {
  return JsonWriter('{')
      .member("bytes", traffic.bytes)
      .member("sectors", traffic.sectors)
      .member("unique_sectors", traffic.unique_sectors)
      .done();
}

std::string to_json(BufferTraffic const& traffic) {
  return JsonWriter('{')
      .member("read", to_json(traffic.read))
      .member("written", to_json(traffic.written))
      .done();
}

std::string demangle(std::string const& name) {
  int status = 0;
  std::unique_ptr<char, decltype(&std::free)> const text(
      abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), &std::free);
  return status == 0 ? text.get() : name;
}

std::string to_json(LaunchRecord const& record) {
  JsonWriter traffic('{');
  for (auto const& [buffer, moved] : record.traffic) {
    traffic.member(buffer, to_json(moved));
  }
  LaunchConfig const& config = record.config;
  return JsonWriter('{')
      .member("kernel", quote(short_kernel_name(record.kernel)))
      .member("signature", quote(demangle(record.kernel)))
      .member("grid", config.grid)
      .member("block", config.block)
      .member("cluster", config.cluster)
      .member("dynamic_shared", uint64_t(config.dynamic_shared))
      .member("static_shared", uint64_t(record.static_shared))
      .member("overlaps_previous", config.overlaps_previous)
      .member("cooperative", config.cooperative)
      .member("warp_instructions", record.warp_instructions)
      .member("matrix_instructions", record.matrix_instructions)
      .member("shared_wavefronts", record.shared_traffic.wavefronts)
      .member("shared_wavefronts_minimum", record.shared_traffic.wavefronts_minimum)
      .member("traffic", traffic.done())
      .done();
}

template <class List>
std::string list_to_json(List const& list) {
  JsonWriter array('[');
  for (auto const& item : list) {
    array.element(to_json(item));
  }
  return array.done();
}

// ---- Settings -------------------------------------------------------------------------------------

struct Setting {
  std::string_view name;
  void (*set)(Settings&, int64_t);
};

template <auto kMember>
constexpr Setting setting(std::string_view name) {
  return {name, [](Settings& settings, int64_t value) {
            auto& member = settings.*kMember;
            member = static_cast<std::remove_reference_t<decltype(member)>>(value);
          }};
}

constexpr Setting kSettings[] = {
    setting<&Settings::order>("order"),
    setting<&Settings::async_timing>("async_timing"),
    setting<&Settings::race_detection>("race_detection"),
    setting<&Settings::seed>("seed"),
    setting<&Settings::check_uninitialized>("check_uninitialized"),
    setting<&Settings::mma_fraction_bits>("mma_fraction_bits"),
    setting<&Settings::resident_threads>("resident_threads"),
    setting<&Settings::livelock_instructions>("livelock_instructions"),
    setting<&Settings::compute_capability>("compute_capability"),
    setting<&Settings::num_sms>("num_sms"),
};

// The stream on which host layers under test launch, so that Python can capture what they do.
cudaStream_t test_stream() {
  static cudaStream_t const stream = [] {
    cudaStream_t made = nullptr;
    cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
    return made;
  }();
  return stream;
}

}  // namespace
}  // namespace hostsim

#define HOSTSIM_API extern "C" __attribute__((visibility("default")))

// ---- A run ----------------------------------------------------------------------------------------

// 1, or 0 for a name that is not in settings.h.
HOSTSIM_API int hostsim_set(char const* name, long long value) {
  auto const* const found =
      std::ranges::find(hostsim::kSettings, std::string_view(name), &hostsim::Setting::name);
  if (found == std::end(hostsim::kSettings)) {
    return 0;
  }
  found->set(hostsim::machine().settings, value);
  return 1;
}

// Forgets reports, records and errors of earlier runs, drops what is queued or being captured, and
// starts the random numbers again.
HOSTSIM_API void hostsim_clear() {
  hostsim::Machine& m = hostsim::machine();
  m.queue.clear();
  m.records.clear();
  m.random.seed(m.settings.seed);
  hostsim::set_kernel_error(cudaSuccess);
  hostsim::abandon_capture(hostsim::test_stream());
  hostsim::clear_reports();
  hostsim::forget_global_accesses();
}

HOSTSIM_API int hostsim_synchronize() {
  return hostsim::api([] { return hostsim::drain(); });
}

HOSTSIM_API int hostsim_num_reports() { return hostsim::num_reports(); }

HOSTSIM_API char const* hostsim_reports() {
  static std::string text;
  text = hostsim::list_to_json(hostsim::reports());
  return text.c_str();
}

HOSTSIM_API char const* hostsim_launches() {
  static std::string text;
  text = hostsim::list_to_json(hostsim::machine().records);
  return text.c_str();
}

// ---- Buffers --------------------------------------------------------------------------------------

HOSTSIM_API void hostsim_register_buffer(char const* name, void* data, size_t size, int read_only,
                                         int initialized) {
  hostsim::register_buffer(name, data, size, read_only != 0, initialized != 0);
}

HOSTSIM_API void hostsim_unregister_buffer(void const* data) { hostsim::unregister_buffer(data); }

HOSTSIM_API void hostsim_mark_initialized(void const* data, size_t size) {
  hostsim::mark_initialized(data, size);
}

// ---- Graphs ---------------------------------------------------------------------------------------

HOSTSIM_API void* hostsim_current_stream() { return hostsim::test_stream(); }

HOSTSIM_API int hostsim_begin_capture() {
  return cudaStreamBeginCapture(hostsim::test_stream(), cudaStreamCaptureModeGlobal);
}

// On success `graph` can be replayed.
HOSTSIM_API int hostsim_end_capture(void** graph, size_t* num_nodes) {
  cudaGraph_t captured = nullptr;
  cudaError_t status = cudaStreamEndCapture(hostsim::test_stream(), &captured);
  if (status == cudaSuccess) {
    status = cudaGraphGetNodes(captured, nullptr, num_nodes);
  }
  if (status == cudaSuccess) {
    status = cudaGraphInstantiate(reinterpret_cast<cudaGraphExec_t*>(graph), captured, 0);
  }
  if (captured != nullptr) {
    cudaGraphDestroy(captured);
  }
  return status;
}

HOSTSIM_API int hostsim_replay(void* graph) {
  return cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), hostsim::test_stream());
}

HOSTSIM_API void hostsim_destroy_graph(void* graph) {
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
}

HOSTSIM_API char const* hostsim_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
