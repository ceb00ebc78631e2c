// What a test may choose about a run. Everything is deterministic in these values.
#pragma once

#include <cstdint>

namespace hostsim {

enum class Order : int { kInOrder, kRandom, kReverse };

// When an asynchronous operation (cp.async, bulk copy, wgmma) takes effect: at issue, at the wait
// that needs it, or at a random moment between.
enum class AsyncTiming : int { kEarly, kLate, kRandom };

struct Settings {
  Order order = Order::kInOrder;
  AsyncTiming async_timing = AsyncTiming::kEarly;
  bool race_detection = false;
  uint64_t seed = 0;
  // Report reads of shared memory and of output buffers that nothing has written.
  bool check_uninitialized = true;
  // 0: a matrix multiply-accumulate adds exact products in double precision and rounds once.
  // n: its adder aligns all terms to the largest and truncates below n fraction bits.
  int mma_fraction_bits = 0;
  // Threads that may be resident at a time. Race detection raises it to kRaceResidentThreads.
  int resident_threads = 1024;
  // A launch in which no thread makes progress for this many warp instructions is stuck.
  int64_t livelock_instructions = 4'000'000;
  // What cudaDeviceGetAttribute says.
  int compute_capability = 90;
  int num_sms = 4;
};

inline constexpr int kRaceResidentThreads = 4096;

}  // namespace hostsim
