"""Bugs in the kernels of filters and penalties."""

from __future__ import annotations

from functools import partial

from sim.planted.bug import WRONG_RESULT, Bug

_floors = partial(Bug, "logit_floors", file="floors.cuh")
_penalties = partial(Bug, "apply_penalties", file="penalties.cuh")

BUGS = (
    _floors(
        "no wait for the previous kernel",
        "  wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _floors(
        "bins added to before they are cleared",
        "      clear_bins();\n      __syncthreads();\n",
        "      clear_bins();\n",
        finds="race",
    ),
    _floors(
        "bins added up before all have added to them",
        "      });\n      __syncthreads();\n",
        "      });\n",
        finds="race",
    ),
    _floors(
        "totals and the largest read before they are there",
        "largest_;\n    }\n    __syncthreads();\n",
        "largest_;\n    }\n",
        finds="race",
    ),
    _floors(
        "the token at which the goal is reached is not the last",
        "weight > 0 && reached < goal",
        "weight > 0 && reached <= goal",
        finds=WRONG_RESULT,
    ),
    _floors(
        "top-p of the tokens that top-k has cut",
        "key >= floor_key && logit",
        "logit",
        finds=WRONG_RESULT,
    ),
    _floors(
        "the pieces of a weight are as good as each other",
        "(high << kLowBits) + low",
        "high + low",
        finds=WRONG_RESULT,
    ),
    _floors(
        "negative floors without the bits below their type's",
        "prefix >> 31 ? prefix : prefix | ~known",
        "prefix",
        finds=WRONG_RESULT,
    ),
    _floors(
        "min-p at temperature 1",
        "double(filters.temperature) * log(share)",
        "log(share)",
        finds=WRONG_RESULT,
    ),
    _penalties(
        "no wait for the previous kernel",
        "  wait_for_previous_kernel();\n",
        finds="pdl",
    ),
    _penalties(
        "nodes read before they are there",
        "    shared.tokens[thread] = token_of(params, request, thread);\n  }\n  __syncthreads();\n",
        "    shared.tokens[thread] = token_of(params, request, thread);\n  }\n",
        finds="race",
    ),
    _penalties(
        "a path read before it is there",
        "    shared.length = length;\n  }\n  __syncthreads();\n",
        "    shared.length = length;\n  }\n",
        finds="race",
    ),
    _penalties(
        "what is listed is not known before the path is done",
        "  __syncthreads();  // is_listed\n",
        finds="race",
    ),
    _penalties(
        "tokens of the list and the path twice",
        " && shared.is_listed[thread] == 0",
        finds=WRONG_RESULT,
    ),
    _penalties(
        "a token twice where it is twice on the path",
        "is_first ? count : 0",
        "count",
        finds=WRONG_RESULT,
    ),
    _penalties(
        "a negative logit made likelier",
        "logit > 0.0f ? __fdiv_rn(logit, repetition) : __fmul_rn(logit, repetition)",
        "__fdiv_rn(logit, repetition)",
        finds=WRONG_RESULT,
    ),
    _penalties(
        "presence of the prompt's tokens",
        "count > 0 ? __fsub_rn(counted, presence) : counted",
        "__fsub_rn(counted, presence)",
        finds=WRONG_RESULT,
    ),
    _penalties(
        "tokens outside of the vocabulary",
        "0 <= token && token < params.vocab_size",
        "0 <= token",
        finds="memory",
    ),
)
