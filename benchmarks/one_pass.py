"""A few decoding passes and nothing else, for a profiler or a sanitizer to look at.

compute-sanitizer --tool memcheck python benchmarks/one_pass.py --drafter bundled
ncu --set full python benchmarks/one_pass.py --drafter gpt-oss-20b --passes 2
"""

from __future__ import annotations

import sys
from argparse import Namespace

import torch

from drafters import (
    BLOCK_SIZE,
    KV_DTYPES,
    PATTERNS,
    WEIGHT_PRECISIONS,
    Case,
    drafter_of,
    fill_batch,
    quantized,
    random_caches,
    random_weights,
)
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.linear_table import BACKENDS
from shapes import DRAFTERS, config_of


def main() -> int:
    """Run the passes and print a sum of the drafts."""
    options = _parser().parse_args()
    try:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise PEagleError("needs a CUDA device; there is none")
        print(run(options))
    except (PEagleError, OSError) as error:
        print(f"one_pass: error: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: Namespace) -> str:
    """Launch the passes; says what they drafted."""
    o, device = options, torch.device(options.device)
    torch.manual_seed(0)
    case = Case(o.batch, o.k, o.context, o.accepted)
    room = -(-max(case.positions()) // BLOCK_SIZE) * BLOCK_SIZE
    config = config_of(DRAFTERS[o.drafter], room)
    weights = quantized(random_weights(config, device), o.weights)
    caches = random_caches(config, case.num_blocks(), KV_DTYPES[o.kv], device)
    drafter = drafter_of(
        config, weights, caches, o.k, [o.batch], linear=o.linear, cuda_graphs=o.graphs
    )
    given = fill_batch(drafter, case)
    for _ in range(o.passes):
        drafts = drafter.propose(*given)
    return f"{o.passes} passes over {case}: ids sum to {int(drafts.token_ids.sum())}"


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--drafter", choices=DRAFTERS, default="bundled")
    parser.add_argument("--batch", type=positive_int, default=2)
    parser.add_argument("--k", type=positive_int, default=5)
    parser.add_argument("--context", type=positive_int, default=100)
    parser.add_argument("--accepted", choices=PATTERNS, default="ragged")
    parser.add_argument("--kv", choices=KV_DTYPES, default="bf16")
    parser.add_argument("--weights", choices=WEIGHT_PRECISIONS, default="bf16")
    parser.add_argument("--linear", choices=BACKENDS, default="fused")
    parser.add_argument("--passes", type=positive_int, default=2)
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--graphs", action="store_true", help="replay a graph")
    return parser


if __name__ == "__main__":
    sys.exit(main())
