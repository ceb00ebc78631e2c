#include "traffic.h"

#include <algorithm>
#include <array>
#include <vector>

#include "machine.h"

namespace hostsim {
namespace {

struct GlobalTouch {
  Buffer* buffer;
  size_t offset;
  size_t size;
  Access access;
};

struct SharedTouch {
  uint32_t address;
  uint32_t size;
};

std::vector<GlobalTouch> g_global;
std::vector<SharedTouch> g_shared;

// Adds the sectors of all touches of one buffer by one instruction.
void add_sectors(Traffic& traffic, std::vector<bool>& seen, std::vector<uint64_t>& sectors) {
  std::sort(sectors.begin(), sectors.end());
  sectors.erase(std::unique(sectors.begin(), sectors.end()), sectors.end());
  traffic.sectors += sectors.size();
  for (uint64_t const sector : sectors) {
    if (sector >= seen.size()) {
      seen.resize(sector + 1);
    }
    if (!seen[sector]) {
      seen[sector] = true;
      ++traffic.unique_sectors;
    }
  }
}

void count_global_requests(Grid& grid, bool writes) {
  static std::vector<uint64_t> sectors;
  for (size_t i = 0; i < g_global.size();) {
    Buffer* const buffer = g_global[i].buffer;
    BufferTraffic& of_buffer = grid.traffic[buffer];
    Traffic& traffic = writes ? of_buffer.written : of_buffer.read;
    sectors.clear();
    for (; i < g_global.size() && g_global[i].buffer == buffer; ++i) {
      GlobalTouch const& touch = g_global[i];
      if (touch.access == (writes ? Access::kRead : Access::kWrite)) {
        continue;
      }
      traffic.bytes += touch.size;
      // Sectors are those of the address, not of the buffer, which may start inside one.
      uint64_t const base = reinterpret_cast<uint64_t>(buffer->data) % kSectorBytes;
      uint64_t const last = (base + touch.offset + touch.size - 1) / kSectorBytes;
      for (uint64_t s = (base + touch.offset) / kSectorBytes; s <= last; ++s) {
        if (sectors.empty() || sectors.back() != s) {
          sectors.push_back(s);
        }
      }
    }
    add_sectors(traffic, writes ? of_buffer.written_sectors : of_buffer.read_sectors, sectors);
  }
}

constexpr int kBanks = 32;
constexpr int kBankBytes = 4;

// The most different words that one bank has to deliver, and how many words there are in all.
void count_phase(SharedTouch const* begin, SharedTouch const* end, SharedTraffic& traffic) {
  static std::vector<uint32_t> words;
  words.clear();
  for (SharedTouch const* touch = begin; touch != end; ++touch) {
    uint32_t const last = (touch->address + touch->size - 1) / kBankBytes;
    for (uint32_t word = touch->address / kBankBytes; word <= last; ++word) {
      words.push_back(word);
    }
  }
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  std::array<uint64_t, kBanks> per_bank{};
  for (uint32_t const word : words) {
    ++per_bank[word % kBanks];
  }
  traffic.wavefronts += *std::max_element(per_bank.begin(), per_bank.end());
  traffic.wavefronts_minimum += (words.size() + kBanks - 1) / kBanks;
}

// Wide accesses are served half a warp (8 bytes) or a quarter of one (16 bytes) at a time.
void count_shared_request(SharedTraffic& traffic) {
  size_t const lanes_per_phase = g_shared[0].size >= 16 ? 8 : g_shared[0].size >= 8 ? 16 : 32;
  for (size_t i = 0; i < g_shared.size(); i += lanes_per_phase) {
    size_t const end = std::min(i + lanes_per_phase, g_shared.size());
    count_phase(&g_shared[i], g_shared.data() + end, traffic);
  }
}

}  // namespace

void count_global(Buffer& buffer, size_t offset, size_t size, Access access) {
  g_global.push_back({&buffer, offset, size, access});
}

void count_shared(uint32_t address, size_t size) { g_shared.push_back({address, uint32_t(size)}); }

void drop_requests() {
  g_global.clear();
  g_shared.clear();
}

void count_requests(Grid& grid) {
  if (!g_global.empty()) {
    count_global_requests(grid, false);
    count_global_requests(grid, true);
    g_global.clear();
  }
  if (!g_shared.empty()) {
    count_shared_request(grid.shared_traffic);
    g_shared.clear();
  }
}

}  // namespace hostsim
