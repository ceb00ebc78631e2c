// Operations that take effect later than they are issued.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace hostsim {

struct AsyncOp {
  std::function<void()> effect;  // empty once done
  bool done() const { return !effect; }
};
using AsyncRef = std::shared_ptr<AsyncOp>;

// A committed group of one thread (cp.async, bulk) or one warp (wgmma).
struct AsyncGroup {
  std::vector<AsyncRef> ops;
  uint32_t epoch = 0;  // of the issuing agent, for race detection
  // Bulk copies out of shared memory read their source first, which can be waited for on its own.
  std::vector<AsyncRef> reads;
  uint32_t reads_epoch = 0;
};

struct AsyncGroups {
  std::vector<AsyncRef> open;  // issued, not yet committed
  std::vector<AsyncRef> open_reads;
  std::deque<AsyncGroup> committed;
  std::vector<AsyncGroup> read;  // committed before those, waited for with .read only
};

// Issues an operation: runs it now, keeps it for later, or leaves it to chance, by the settings.
AsyncRef issue(std::function<void()> effect);
void complete(AsyncRef const& op);  // runs it now unless done
bool complete_any_pending();        // runs one pending operation; false if there is none
void drop_pending();                // forgets them all, after a fault

}  // namespace hostsim
