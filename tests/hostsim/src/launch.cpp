#include "launch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "ops_barrier.h"

namespace hostsim {
namespace {

constexpr uint32_t kRedZoneBytes = 64;  // between shared variables, so that overruns are seen
constexpr uint32_t kMaxClusterBlocks = 16;

uint32_t round_up(uint32_t value, uint32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

uint32_t static_shared_bytes(Kernel const& kernel) {
  uint32_t bytes = 0;
  for (SharedVariable const& variable : kernel.shared_variables) {
    bytes = round_up(bytes, variable.alignment) + variable.size;
  }
  return bytes;
}

Dim3 cluster_of(Kernel const& kernel, LaunchConfig const& config) {
  return kernel.cluster[0] == 0 ? config.cluster
                                : Dim3{kernel.cluster[0], kernel.cluster[1], kernel.cluster[2]};
}

bool is_launchable(Kernel const& kernel, LaunchConfig const& config) {
  std::string const name = short_kernel_name(kernel.name);
  if (!kernel.unsupported.empty()) {
    std::string all;
    for (std::string const& text : kernel.unsupported) {
      all += "\n  " + text;
    }
    report("ptx", "%s: %zu instructions that the emulator does not know:%s", name.c_str(),
           kernel.unsupported.size(), all.c_str());
    return false;
  }
  uint64_t const threads = config.block.product();
  if (threads == 0 || threads > uint64_t(kernel.max_threads)) {
    report("launch", "%s: %llu threads per block, expected 1 to %d", name.c_str(),
           (unsigned long long)threads, kernel.max_threads);
    return false;
  }
  if (config.grid.product() == 0 || config.grid.product() > 1 << 20) {
    report("launch", "%s: a grid of %llu blocks, expected 1 to %d", name.c_str(),
           (unsigned long long)config.grid.product(), 1 << 20);
    return false;
  }
  Dim3 const cluster = config.cluster;
  if (cluster.product() == 0 || cluster.product() > kMaxClusterBlocks ||
      config.grid.x % cluster.x != 0 || config.grid.y % cluster.y != 0 ||
      config.grid.z % cluster.z != 0) {
    report("launch", "%s: a grid of (%u,%u,%u) blocks in clusters of (%u,%u,%u)", name.c_str(),
           config.grid.x, config.grid.y, config.grid.z, cluster.x, cluster.y, cluster.z);
    return false;
  }
  uint32_t const shared = static_shared_bytes(kernel) + config.dynamic_shared;
  if (shared > kMaxSharedPerBlock) {
    report("launch", "%s: %u bytes of shared memory per block, at most %u exist", name.c_str(),
           shared, kMaxSharedPerBlock);
    return false;
  }
  return true;
}

Dim3 position(uint32_t linear, Dim3 size) {
  return {linear % size.x, linear / size.x % size.y, linear / (size.x * size.y)};
}

// Variables first, then the dynamic part, which so is aligned to no more than its declaration asks,
// as on a GPU. A block without variables finds it at the base, as there, too.
void lay_out_shared(Block& block, std::vector<uint32_t>& addresses) {
  Kernel const& kernel = *block.grid->kernel;
  uint32_t top = kSharedBase;
  uint32_t dynamic_alignment = 16;
  addresses.assign(kernel.shared_variables.size(), 0);
  for (size_t i = 0; i < kernel.shared_variables.size(); ++i) {
    SharedVariable const& variable = kernel.shared_variables[i];
    if (variable.size == 0) {
      dynamic_alignment = std::max(dynamic_alignment, variable.alignment);
      continue;
    }
    top = round_up(top, variable.alignment);
    addresses[i] = shared_address_of(block, top);
    allocate_shared(block, variable.name, top, variable.size);
    top += variable.size + kRedZoneBytes;
  }
  top = round_up(top, dynamic_alignment);
  for (size_t i = 0; i < kernel.shared_variables.size(); ++i) {
    if (kernel.shared_variables[i].size == 0) {
      addresses[i] = shared_address_of(block, top);
    }
  }
  if (block.grid->config.dynamic_shared > 0) {
    allocate_shared(block, "dynamic shared memory", top, block.grid->config.dynamic_shared);
  }
}

uint64_t special_value(Special special, Block const& block, Thread const& thread) {
  LaunchConfig const& config = block.grid->config;
  Dim3 const cluster = config.cluster;
  Dim3 const in_cluster = position(uint32_t(block.rank), cluster);
  int const lane = thread.lane;
  uint32_t const below = lane == 0 ? 0 : (1u << lane) - 1;
  switch (special) {
    case Special::kTidX: return thread.id.x;
    case Special::kTidY: return thread.id.y;
    case Special::kTidZ: return thread.id.z;
    case Special::kNtidX: return config.block.x;
    case Special::kNtidY: return config.block.y;
    case Special::kNtidZ: return config.block.z;
    case Special::kCtaidX: return block.id.x;
    case Special::kCtaidY: return block.id.y;
    case Special::kCtaidZ: return block.id.z;
    case Special::kNctaidX: return config.grid.x;
    case Special::kNctaidY: return config.grid.y;
    case Special::kNctaidZ: return config.grid.z;
    case Special::kLaneid: return uint64_t(lane);
    case Special::kWarpid: return uint64_t(thread.index / kWarpSize);
    case Special::kNwarpid: return block.warps.size();
    case Special::kSmid: return uint64_t(block.slot % machine().settings.num_sms);
    case Special::kNsmid: return uint64_t(machine().settings.num_sms);
    case Special::kGridid: return block.grid->serial;
    case Special::kLanemaskEq: return 1u << lane;
    case Special::kLanemaskLe: return below | 1u << lane;
    case Special::kLanemaskLt: return below;
    case Special::kLanemaskGe: return ~below;
    case Special::kLanemaskGt: return ~(below | 1u << lane);
    case Special::kClusterCtaidX: return in_cluster.x;
    case Special::kClusterCtaidY: return in_cluster.y;
    case Special::kClusterCtaidZ: return in_cluster.z;
    case Special::kClusterNctaidX: return cluster.x;
    case Special::kClusterNctaidY: return cluster.y;
    case Special::kClusterNctaidZ: return cluster.z;
    case Special::kClusteridX: return block.id.x / cluster.x;
    case Special::kClusteridY: return block.id.y / cluster.y;
    case Special::kClusteridZ: return block.id.z / cluster.z;
    case Special::kNclusteridX: return config.grid.x / cluster.x;
    case Special::kNclusteridY: return config.grid.y / cluster.y;
    case Special::kNclusteridZ: return config.grid.z / cluster.z;
    case Special::kClusterCtarank: return uint64_t(block.rank);
    case Special::kClusterNctarank: return cluster.product();
    case Special::kIsExplicitCluster: return cluster.product() > 1;
    case Special::kDynamicSmemSize: return config.dynamic_shared;
    case Special::kTotalSmemSize:
      return static_shared_bytes(*block.grid->kernel) + config.dynamic_shared;
  }
  return 0;
}

void fill_registers(Warp& warp, std::vector<uint32_t> const& shared_addresses) {
  Block const& block = *warp.block;
  Kernel const& kernel = *block.grid->kernel;
  Row poison;
  poison.lane.fill(~uint64_t(0));
  warp.registers.assign(size_t(kernel.num_rows), poison);
  auto const broadcast = [&](int row, uint64_t value) {
    warp.registers[size_t(row)].lane.fill(value);
  };
  for (auto const& [row, value] : kernel.constants) {
    broadcast(row, value);
  }
  for (auto const& [row, variable] : kernel.shared_addresses) {
    broadcast(row, shared_addresses[size_t(variable)]);
  }
  for (auto const& [row, offset] : kernel.parameter_addresses) {
    broadcast(row, reinterpret_cast<uint64_t>(block.grid->parameters.get()) + offset);
  }
  for (auto const& [row, special] : kernel.specials) {
    for_each_lane(warp.existing, [&](int lane) {
      warp.registers[size_t(row)][lane] = special_value(special, block, warp.threads[size_t(lane)]);
    });
  }
  for (auto const& [row, offset] : kernel.local_addresses) {
    for_each_lane(warp.existing, [&](int lane) {
      warp.registers[size_t(row)][lane] =
          reinterpret_cast<uint64_t>(warp.threads[size_t(lane)].local) + offset;
    });
  }
}

void make_threads(Block& block) {
  Grid const& grid = *block.grid;
  uint32_t const local_stride = round_up(grid.kernel->local_bytes, 16);
  block.num_threads = int(grid.config.block.product());
  block.live_threads = block.num_threads;
  if (local_stride > 0) {
    size_t const bytes = size_t(local_stride) * size_t(block.num_threads);
    block.local = std::make_unique_for_overwrite<char[]>(bytes);
    std::memset(block.local.get(), 0xff, bytes);
  }
  for (int first = 0; first < block.num_threads; first += kWarpSize) {
    auto warp = std::make_unique<Warp>();
    warp->block = &block;
    warp->index = first / kWarpSize;
    for (int lane = 0; lane < kWarpSize && first + lane < block.num_threads; ++lane) {
      Thread& thread = warp->threads[size_t(lane)];
      thread.warp = warp.get();
      thread.lane = lane;
      thread.index = first + lane;
      thread.id = position(uint32_t(thread.index), grid.config.block);
      thread.local = block.local.get() + size_t(local_stride) * size_t(thread.index);
      warp->existing |= 1u << lane;
    }
    auto fragment = std::make_unique<Fragment>();
    fragment->lanes = warp->existing;
    warp->fragments.push_back(std::move(fragment));
    block.warps.push_back(std::move(warp));
  }
}

std::unique_ptr<Block> make_block(Grid& grid, Cluster& cluster, Dim3 cluster_id, int rank) {
  Dim3 const size = grid.config.cluster;
  Dim3 const inside = position(uint32_t(rank), size);
  auto block = std::make_unique<Block>();
  block->grid = &grid;
  block->cluster = &cluster;
  block->rank = rank;
  block->id = {cluster_id.x * size.x + inside.x, cluster_id.y * size.y + inside.y,
               cluster_id.z * size.z + inside.z};
  block->index = int(block->id.linear(grid.config.grid));
  attach_shared(*block);
  make_threads(*block);
  std::vector<uint32_t> shared_addresses;
  lay_out_shared(*block, shared_addresses);
  for (auto const& warp : block->warps) {
    fill_registers(*warp, shared_addresses);
  }
  return block;
}

}  // namespace

bool enqueue(Kernel const& kernel, LaunchConfig const& config, std::vector<char> parameters) {
  LaunchConfig actual = config;
  actual.cluster = cluster_of(kernel, config);
  if (!is_launchable(kernel, actual)) {
    return false;
  }
  Machine& m = machine();
  auto grid = std::make_unique<Grid>();
  grid->kernel = &kernel;
  grid->config = actual;
  constexpr size_t kAlignment = 128;  // tensor maps among the parameters need 64
  size_t const bytes = (parameters.size() + kAlignment) / kAlignment * kAlignment;
  grid->parameters.reset(static_cast<char*>(std::aligned_alloc(kAlignment, bytes)), &std::free);
  std::memcpy(grid->parameters.get(), parameters.data(), parameters.size());
  grid->serial = m.queue.empty() ? 0 : m.queue.back()->serial + 1;
  grid->previous = m.queue.empty() || !actual.overlaps_previous ? nullptr : m.queue.back().get();
  m.queue.push_back(std::move(grid));
  return true;
}

void begin_grid(Grid& grid) {
  Machine& m = machine();
  grid.state = Grid::State::kRunning;
  grid.untriggered_blocks = int(grid.config.grid.product());
  grid.saw_before_wait = grid.previous != nullptr ? grid.previous->saw_before_wait : grid.serial;
  auto const clusters = uint32_t(grid.config.grid.product() / grid.config.cluster.product());
  for (uint32_t i = clusters; i > 0; --i) {
    grid.clusters_to_start.push_back(i - 1);
  }
  if (m.settings.order == Order::kReverse) {
    std::reverse(grid.clusters_to_start.begin(), grid.clusters_to_start.end());
  } else if (m.settings.order == Order::kRandom) {
    std::shuffle(grid.clusters_to_start.begin(), grid.clusters_to_start.end(), m.random);
  }
}

Cluster& start_cluster(Grid& grid) {
  auto cluster = std::make_unique<Cluster>();
  Dim3 const size = grid.config.cluster;
  Dim3 const clusters{grid.config.grid.x / size.x, grid.config.grid.y / size.y,
                      grid.config.grid.z / size.z};
  cluster->grid = &grid;
  cluster->index = int(grid.clusters_to_start.back());
  grid.clusters_to_start.pop_back();
  for (int rank = 0; rank < int(size.product()); ++rank) {
    cluster->blocks.push_back(
        make_block(grid, *cluster, position(uint32_t(cluster->index), clusters), rank));
  }
  cluster->live_blocks = int(cluster->blocks.size());
  grid.running.push_back(std::move(cluster));
  return *grid.running.back();
}

void finish_block(Block& block) {
  Machine& m = machine();
  Grid& grid = *block.grid;
  for (auto const& [agent, epoch] : block.remote_users) {
    if (epoch > block.exit_clock.epoch_of(agent)) {
      report("cluster", "block %d exits while block %d may still use its shared memory",
             block.index, Agent::block(agent));
      break;
    }
  }
  grid.all_waited &= grid.previous == nullptr || block.exit_clock.saw_predecessor;
  if (!block.triggered) {
    block.triggered = true;
    --grid.untriggered_blocks;
  }
  if (--block.cluster->live_blocks > 0) {
    return;
  }
  // Operations still under way refer to the cluster's blocks.
  while (complete_any_pending()) {
  }
  for (auto const& done : block.cluster->blocks) {
    detach_shared(*done);
  }
  ++m.progress;
  auto const is_this = [&](auto const& cluster) { return cluster.get() == block.cluster; };
  std::erase_if(grid.running, is_this);
}

void finish_grid(Grid& grid) {
  Machine& m = machine();
  grid.state = Grid::State::kFinished;

  LaunchRecord record;
  record.kernel = grid.kernel->name;
  record.config = grid.config;
  record.static_shared = static_shared_bytes(*grid.kernel);
  record.warp_instructions = grid.warp_instructions;
  record.matrix_instructions = grid.matrix_instructions;
  record.shared_traffic = grid.shared_traffic;
  for (auto& [buffer, traffic] : grid.traffic) {
    record.traffic[buffer->name] = std::move(traffic);
  }
  grid.traffic.clear();
  grid.sync_variables.clear();
  m.records.push_back(std::move(record));
}

}  // namespace hostsim
