"""`p-eagle-cuda plan`: the floor of a drafter's pass on a GPU, and its predicted time; no GPU."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from typing import Any

import torch

from p_eagle_cuda.arguments import positive_int
from p_eagle_cuda.config import DrafterConfig
from p_eagle_cuda.cuda_limits import cuda_refusals
from p_eagle_cuda.errors import BackendError, PEagleError
from p_eagle_cuda.kv_cache import allocate_cache
from p_eagle_cuda.linear_table import BACKENDS
from p_eagle_cuda.planning.gpus import GPUS, Gpu, find_gpu
from p_eagle_cuda.planning.phases import Batch, Precision
from p_eagle_cuda.planning.prediction import KernelPrediction, PassModel, Prediction
from p_eagle_cuda.precision import KV_DTYPES, WEIGHT_PRECISIONS, kv_cache_dtype

BLOCK_SIZE = 16
ALL_ARCHITECTURES = ("80", "89", "90a", "100a", "120a")  # a build can have them all
ACCEPTED_SHARE = 0.4  # of K, about what is published for the gpt-oss drafters

DESCRIPTION = f"""\
Predict how long a drafter's pass takes on a GPU, from its configuration alone. All figures are
predicted; none is measured. The floor is what memory and tensor cores cannot avoid, at the rates
that large copies and bf16 products are taken to reach; with FP8 weights too, which are multiplied
in 16 bits, but for twice that rate with "w8a8". The prediction adds what the kernels move beyond
that, by the counts of an emulator, and what launches and their ends are taken to cost.

GPUs: {", ".join(GPUS)}. For another one, or for rates that you have measured, give --bandwidth and
--tflops; the architecture and the number of SMs are still those of --gpu.
"""


def add_command(commands: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    """Add it to a parser's commands."""
    parser = commands.add_parser(
        "plan",
        help="floor and predicted time of a drafter's pass on a GPU",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--config", required=True, metavar="PATH", help="drafter folder, or its config.json"
    )
    parser.add_argument("--gpu", default="h200", metavar="NAME", help="default: %(default)s")
    parser.add_argument(
        "--batch", type=_batches, default=[1, 8, 32, 128], metavar="B,B,...",
        help="numbers of requests (1,8,32,128)",
    )  # fmt: skip
    parser.add_argument("--k", type=positive_int, default=5, help="tokens drafted (%(default)s)")
    parser.add_argument(
        "--context", type=positive_int, default=4096, help="stored positions (%(default)s)"
    )
    parser.add_argument(
        "--accepted", type=float, metavar="A",
        help=f"mean of accepted drafts per request, 0 to K (two fifths of K: {ACCEPTED_SHARE} K)",
    )  # fmt: skip
    parser.add_argument("--weights", choices=WEIGHT_PRECISIONS, default="auto")
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, default="auto")
    parser.add_argument(
        "--linear", choices=BACKENDS, default="auto",
        help="what runs the linear layers, as in Drafter (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--bandwidth", type=_rate, metavar="TB/S", help="that copies reach, not the data sheet's"
    )
    parser.add_argument(
        "--tflops", type=_rate, metavar="TFLOP/S", help="that bf16 products reach, likewise"
    )
    parser.add_argument("--kernels", action="store_true", help="the kernels of each pass, too")
    parser.add_argument("--json", action="store_true", help="print a JSON array, a row per batch")


def run(options: argparse.Namespace) -> int:
    """Carry it out; returns the exit code.

    Raises:
        PEagleError: An option or the configuration is wrong, or no kernel can run the drafter.
    """
    accepted = ACCEPTED_SHARE * options.k if options.accepted is None else options.accepted
    if not 0 <= accepted <= options.k:
        raise PEagleError(f"--accepted must be from 0 to --k {options.k}, got {accepted:g}")
    gpu = find_gpu(options.gpu, options.bandwidth, options.tflops)
    config = DrafterConfig.from_pretrained(options.config)
    check_kernels(config, gpu, max(options.batch) * options.k, options.kv_dtype)
    model = PassModel(
        config, gpu, Precision.of(options.weights, options.kv_dtype), linear=options.linear
    )
    found = [
        model.predict(Batch.of_equal(size, options.k, accepted, options.context))
        for size in options.batch
    ]
    if options.json:
        settings = {
            "predicted": True, "gpu": options.gpu.lower(), "k": options.k,
            "context": options.context, "accepted": accepted, "weights": options.weights,
            "kv_dtype": options.kv_dtype, "linear": options.linear,
            "tb_per_s": round(gpu.bytes_per_s / 1e12, 4),
            "tflop_per_s": round(gpu.flops_per_s / 1e12, 4),
        }  # fmt: skip
        rows = [json.dumps({**as_row(x), **settings, "kernels": by_kernel(x)}) for x in found]
        print("[" + ",\n ".join(rows) + "]")
        return 0
    print(_caption(options, gpu, accepted))
    print(table(found))
    for x in found if options.kernels else []:
        print(f"\nbatch {x.batch.size}, predicted\n{kernel_table(x)}")
    return 0


def check_kernels(config: DrafterConfig, gpu: Gpu, num_samples: int, kv_dtype: str) -> None:
    """Raise BackendError if a `Drafter` of this configuration would be refused on the GPU."""
    caches = allocate_cache(
        1, 1, config.num_kv_heads, BLOCK_SIZE, config.head_dim,
        kv_cache_dtype(kv_dtype, torch.bfloat16),
    )  # fmt: skip
    refusals = cuda_refusals(
        config, torch.bfloat16, caches, num_samples, 1, gpu.architecture, ALL_ARCHITECTURES
    )
    if refusals:
        raise BackendError(f"the kernels cannot run this drafter: {'; '.join(refusals)}")


def as_row(found: Prediction) -> dict[str, Any]:
    """The figures of a pass."""
    return {
        "batch": found.batch.size,
        "floor_us": round(found.floor_us, 2),
        "predicted_us": round(found.predicted_us, 2),
        "launches": found.launches,
        "bytes": found.bytes,
        "moved_bytes": found.moved_bytes,
    }


def by_kernel(found: Prediction) -> list[dict[str, Any]]:
    """The same of each kernel, launches that run alike together."""
    sums: dict[tuple[str, str], list[KernelPrediction]] = {}
    for kernel in found.kernels:
        sums.setdefault((kernel.kernel, kernel.runs_on), []).append(kernel)
    return [
        {
            "kernel": name,
            "runs_on": runs_on,
            "launches": round(sum(x.launches for x in own)),
            "bytes": sum(x.needed_bytes for x in own),
            "moved_bytes": sum(x.moved_bytes for x in own),
            "predicted_us": round(sum(x.us for x in own), 2),
        }
        for (name, runs_on), own in sums.items()
    ]


def table(found: Iterable[Prediction]) -> str:
    """A line for each pass under a heading."""
    lines = ["batch  launches  MB that must move  MB moved  floor us  predicted us  of floor"]
    lines += [
        f"{x.batch.size:5}  {x.launches:8}  {x.bytes / 1e6:17.0f}  {x.moved_bytes / 1e6:8.0f}"
        f"  {x.floor_us:8.0f}  {x.predicted_us:12.0f}  {x.predicted_us / x.floor_us:8.2f}"
        for x in found
    ]
    return "\n".join(lines)


def kernel_table(found: Prediction) -> str:
    """A line for each kernel under a heading."""
    lines = [f"{'kernel':18} {'runs on':9} launches  MB that must move  MB moved  predicted us"]
    lines += [
        f"{x['kernel']:18} {x['runs_on']:9} {x['launches']:8}  {x['bytes'] / 1e6:17.2f}"
        f"  {x['moved_bytes'] / 1e6:8.2f}  {x['predicted_us']:12.1f}"
        for x in by_kernel(found)
    ]
    return "\n".join(lines)


def _caption(options: argparse.Namespace, gpu: Gpu, accepted: float) -> str:
    measured = {"bandwidth": options.bandwidth, "tflops": options.tflops}
    given = [f"--{name}" for name, value in measured.items() if value is not None]
    return (
        f"Predicted, not measured: {options.gpu.lower()} at {gpu.bytes_per_s / 1e12:.2f} TB/s and "
        f"{gpu.flops_per_s / 1e12:.0f} TFLOP/s ({' and '.join(given) or 'assumed'}),\n"
        f"K = {options.k}, {accepted:g} accepted, {options.context} tokens of context, "
        f"weights {options.weights}, cache {options.kv_dtype}, linear layers {options.linear}\n"
    )


def _batches(text: str) -> list[int]:
    return [positive_int(part) for part in text.split(",")]


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value
