#include "async.h"

#include <utility>

#include "machine.h"

namespace hostsim {
namespace {

// Issued and perhaps not done; complete() may have run some of them already.
std::deque<AsyncRef> g_pending;

}  // namespace

AsyncRef issue(std::function<void()> effect) {
  auto op = std::make_shared<AsyncOp>();
  op->effect = std::move(effect);
  if (machine().settings.async_timing == AsyncTiming::kEarly) {
    complete(op);
  } else {
    g_pending.push_back(op);
  }
  return op;
}

void complete(AsyncRef const& op) {
  if (op->done()) {
    return;
  }
  ++machine().progress;
  // Emptied first: the effect may complete operations that wait for this one.
  std::exchange(op->effect, nullptr)();
}

bool complete_any_pending() {
  bool const random = machine().settings.async_timing == AsyncTiming::kRandom;
  while (!g_pending.empty()) {
    // Late operations run latest first: what one of them completes shows nothing of those before.
    if (random) {
      std::swap(g_pending.back(), g_pending[machine().random() % g_pending.size()]);
    }
    AsyncRef const op = std::move(g_pending.back());
    g_pending.pop_back();
    if (!op->done()) {
      complete(op);
      return true;
    }
  }
  return false;
}

void drop_pending() { g_pending.clear(); }

}  // namespace hostsim
