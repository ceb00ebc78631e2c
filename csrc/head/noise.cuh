// Noise that depends on nothing but a key, a position, an index and what it is for: a row gets the
// same alone or in a batch, in whichever thread. p_eagle_cuda.noise is the definition.
#pragma once

#include <cuda_runtime.h>
#include <cutlass/cutlass.h>

#include <cstdint>

namespace p_eagle {

inline constexpr int kPhiloxWords = 4;

// What noise is for, the salt of a counter; for some 4 times a depth is added. Stream in
// p_eagle_cuda.noise.
inline constexpr uint32_t kHeadNoise = 0;
inline constexpr uint32_t kOrderNoise = 1;
inline constexpr uint32_t kAcceptNoise = 2;
inline constexpr uint32_t kChoiceNoise = 3;

CUTLASS_HOST_DEVICE constexpr uint32_t salt_at(uint32_t stream, int depth) {
  return stream + 4u * uint32_t(depth);
}

struct PhiloxBlock {
  uint32_t words[kPhiloxWords];

  // Philox4x32-10 (Salmon et al., 2011).
  CUTLASS_DEVICE static PhiloxBlock make(uint32_t index, int64_t position, int64_t key,
                                         uint32_t salt = kHeadNoise) {
    uint32_t c[kPhiloxWords] = {index, salt, uint32_t(position), uint32_t(position >> 32)};
    uint32_t k[2] = {uint32_t(key), uint32_t(key >> 32)};
    CUTLASS_PRAGMA_UNROLL
    for (int round = 0; round < 10; ++round) {
      uint64_t const first = uint64_t(c[0]) * 0xd2511f53u;
      uint64_t const third = uint64_t(c[2]) * 0xcd9e8d57u;
      c[0] = uint32_t(third >> 32) ^ c[1] ^ k[0];
      c[1] = uint32_t(third);
      c[2] = uint32_t(first >> 32) ^ c[3] ^ k[1];
      c[3] = uint32_t(first);
      k[0] += 0x9e3779b9u;
      k[1] += 0xbb67ae85u;
    }
    return {{c[0], c[1], c[2], c[3]}};
  }

  CUTLASS_DEVICE uint32_t word(int i) const {
    uint32_t const low = i % 2 ? words[1] : words[0];
    uint32_t const high = i % 2 ? words[3] : words[2];
    return i / 2 ? high : low;
  }
};

CUTLASS_DEVICE float noise_uniform(uint32_t word) {
  return fminf(float(word) * 0x1p-32f + 0x1p-33f, 1.0f - 0x1p-24f);
}

// In (0, 1), of 52 bits.
CUTLASS_DEVICE double fine_uniform(uint32_t index, int64_t position, int64_t key, uint32_t salt) {
  PhiloxBlock const block = PhiloxBlock::make(index, position, key, salt);
  uint64_t const bits = uint64_t(block.words[0]) << 20 | block.words[1] >> 12;
  return (double(bits) + 0.5) * 0x1p-52;
}

CUTLASS_DEVICE float gumbel(uint32_t word) { return -logf(-log1pf(-noise_uniform(word))); }

// Adds to each score the noise of its id. Of ids in order four have one block.
template <int kCount>
CUTLASS_DEVICE void add_gumbel(float (&scores)[kCount], int const (&ids)[kCount], int64_t position,
                               int64_t key) {
  PhiloxBlock block;
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < kCount; ++i) {
    if (i == 0 || ids[i] / kPhiloxWords != ids[i - 1] / kPhiloxWords) {
      block = PhiloxBlock::make(ids[i] / kPhiloxWords, position, key);
    }
    scores[i] += gumbel(block.word(ids[i] % kPhiloxWords));
  }
}

}  // namespace p_eagle
