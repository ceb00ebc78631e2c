#include <bit>

#include "machine.h"

namespace hostsim {

Row& Execution::sink() {
  static Row row;
  return row;
}

Flow Execution::sleep(char const* what, uint32_t at) const {
  fragment->state = Fragment::State::kWaiting;
  fragment->sleeps = true;
  fragment->waits_for = what;
  fragment->waits_at = at;
  return Flow::kSleep;
}

Flow Execution::retry(char const* what, uint32_t at) const {
  fragment->state = Fragment::State::kWaiting;
  fragment->sleeps = false;
  fragment->waits_for = what;
  fragment->waits_at = at;
  return Flow::kRetry;
}

Flow Execution::yield() const { return Flow::kYield; }

bool Execution::converged(Lanes wanted) const {
  if ((wanted & warp.exited) != 0) {
    fault("warp", "an operation of lanes %s, of which %s have exited",
          describe_lanes(wanted).c_str(), describe_lanes(wanted & warp.exited).c_str());
  }
  return (wanted & warp.existing & ~fragment->lanes) == 0;
}

Fragment& Execution::split(Lanes lanes, int pc) const {
  fragment->lanes &= ~lanes;
  auto part = std::make_unique<Fragment>();
  part->lanes = lanes;
  part->pc = pc;
  warp.fragments.push_back(std::move(part));
  return *warp.fragments.back();
}

std::string describe_lanes(Lanes lanes) {
  if (lanes == kAllLanes) {
    return "0-31";
  }
  std::string text;
  for (int first = 0; first < kWarpSize; ++first) {
    if ((lanes >> first & 1) == 0) {
      continue;
    }
    int last = first;
    while (last + 1 < kWarpSize && (lanes >> (last + 1) & 1) != 0) {
      ++last;
    }
    text += (text.empty() ? "" : ",") + std::to_string(first);
    if (last > first) {
      text += "-" + std::to_string(last);
    }
    first = last;
  }
  return text.empty() ? "none" : text;
}

}  // namespace hostsim
