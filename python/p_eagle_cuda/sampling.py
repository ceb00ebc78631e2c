"""The randomness of the embedded engine's requests.

Verification is `ops.verify` with the rule "target": each position has one random number, keyed by
(seed, request, position), and the target's choice there is the inverse of its distribution at that
number (its argmax at temperature 0). A draft is accepted when it is that choice; of siblings,
whichever is, so that it does not matter how a tree was chosen. The emitted text is thus the very
text that the target alone would emit with the same seed: not only its distribution but every token
is unchanged, at any temperature. A greedy draft x is accepted with probability p(x), as in
rejection sampling with a one-hot draft.
"""

from __future__ import annotations

_MASK64 = (1 << 64) - 1


def request_key(seed: int, request: int) -> int:
    """The key of a request's noise, int64: its seed, mixed with what tells it from others.

    Two rounds of the SplitMix64 finaliser (Steele, Lea and Flood, 2014), one for each part.
    """
    state = 0
    for part in (seed, request):
        state = (state + part + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state - (state >> 63 << 64)
