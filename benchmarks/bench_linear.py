"""The linear layers: the fused kernels and CUTLASS's against cuBLAS, weights not in L2.

For each weight of a drafter and each number of rows: microseconds, GB/s, the share of the measured
copy bandwidth, and the ratios to cuBLAS. The fused op does all of its layer; cuBLAS is timed for
the product alone, without the norm, the activation, the rotation or the cache that go with it, so
the comparison favours cuBLAS. CUTLASS's op has the residual and the activation with its product,
and is timed on compute capability 9.0, with 16-bit weights. "w8a8" is "e4m3" with rows in FP8, too,
whose sums are checked against those of such rows. With `--compile` there is also the
reference under torch.compile, which does all but write to the cache. Results are checked against
float32 before anything is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from clocks import ClockWatch
from compiled import Baseline
from p_eagle_cuda import ops, reference
from p_eagle_cuda.arguments import OneLineParser, positive_int
from p_eagle_cuda.config import RopeConfig
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.kv_cache import allocate_cache
from p_eagle_cuda.precision import quantize_activations
from p_eagle_cuda.rope import rope_table
from shapes import DRAFTERS, EPS, DrafterShape
from timing import (
    Call,
    copy_bandwidth,
    device_to_time,
    environment,
    num_copies,
    time_candidates,
    write_json,
)

E4M3 = torch.float8_e4m3fn
WEIGHT_FORMATS = ("bf16", "e4m3", "w8a8")
BLOCK_SIZE = 16
# bf16 rounding of a result of order one, on either side
TOLERANCE = 0.05


class BenchmarkError(PEagleError):
    """Something that makes a measurement pointless."""


class Layer:
    """One linear layer of a drafter on some copies of its weight."""

    def __init__(
        self, name: str, shape: DrafterShape, num_rows: int, weight: str, device: torch.device,
        copies: int,
    ) -> None:  # fmt: skip
        """`weight` is one of `WEIGHT_FORMATS`."""
        self.name, self.shape, self.device = name, shape, device
        self.rows, self.columns = shape.linear_layers()[name]
        R = num_rows
        self.num_rows = torch.tensor([R], dtype=torch.int32, device=device)
        self.x = torch.randn(R, self.columns, device=device).bfloat16()
        self.weights = [
            (torch.randn(self.rows, self.columns, device=device) / self.columns**0.5).bfloat16()
            for _ in range(copies)
        ]
        self.quantised: list[tuple[Tensor, Tensor]] = []
        if weight != "bf16":
            self.quantised = [quantise(matrix) for matrix in self.weights]
        self.fp8_activations = weight == "w8a8"
        self.fused_options: dict[str, Any] = {
            "workspace": ops.linear_workspace(device), "fp8_activations": self.fp8_activations,
        }  # fmt: skip
        self.product = torch.empty(R, self.rows, device=device, dtype=torch.bfloat16)

    @property
    def weight_bytes(self) -> int:
        """That one call reads."""
        return self.rows * self.columns * (1 if self.quantised else 2)

    def cublas(self) -> list[Call]:
        """The product alone, with bf16 weights."""

        def call(weight: Tensor) -> Call:
            return lambda: torch.mm(self.x, weight.T, out=self.product)

        return [call(weight) for weight in self.weights]

    def fused(self) -> list[Call]:
        """The op that does this layer, and what it writes in `self.result`."""
        make: dict[str, Callable[[Tensor, Tensor | None], Call]] = {
            "fc": self._project_taps,
            "qkv of the first layer": self._qkv,
            "qkv": self._qkv,
            "o": self._residual,
            "gate_up": self._swiglu,
            "down": self._residual,
        }
        pairs = self.quantised or [(weight, None) for weight in self.weights]
        return [make[self.name](weight, scale) for weight, scale in pairs]

    def cutlass(self) -> list[Call]:
        """The product of many rows with what it does as it stores, in `self.result`."""

        def call(weight: Tensor) -> Call:
            rows = {"num_rows": self.num_rows, "workspace": self.fused_options["workspace"]}
            if self.name == "gate_up":
                return lambda: ops.gemm_swiglu(self.x, weight, out=out, **rows)
            if self.name in ("o", "down"):
                return lambda: ops.gemm_residual(
                    self.x, weight, None, residual=out, sum_squares=sums, **rows
                )
            return lambda: ops.gemm(self.x, weight, None, out=out, **rows)

        R, width = self.x.shape[0], self.rows // (2 if self.name == "gate_up" else 1)
        self.result = out = self.x.new_zeros(R, width)
        sums = torch.empty(-(-width // 64), R, device=self.device)
        return [call(weight) for weight in self.weights]

    def candidates(self) -> dict[str, list[Call]]:
        """What is timed."""
        found = {"fused": self.fused(), "cublas": self.cublas()}
        return found | ({"cutlass": self.cutlass()} if self.has_cutlass else {})

    @property
    def has_cutlass(self) -> bool:
        """Whether CUTLASS's op runs here."""
        if self.device.type == "cpu":
            return not self.quantised
        return torch.cuda.get_device_capability(self.device) == (9, 0) and not self.quantised

    def _project_taps(self, weight: Tensor, scale: Tensor | None) -> Call:
        R, H = self.x.shape[0], self.rows
        taps = [x.contiguous() for x in self.x.split(self.columns // self.shape.num_taps, dim=1)]
        source_row = torch.arange(R, dtype=torch.int32, device=self.device)
        self.result = self.x.new_empty(R, H)
        return lambda: ops.project_taps(
            taps, source_row, self.num_rows, weight, None, None, EPS, self.result,
            weight_scale=scale, **self.fused_options,
        )  # fmt: skip

    def _residual(self, weight: Tensor, scale: Tensor | None) -> Call:
        R, H = self.x.shape[0], self.rows
        self.result = self.x.new_zeros(R, H)
        sums = torch.empty(-(-H // 64), R, device=self.device)
        return lambda: ops.linear_residual(
            self.x, weight, None, self.num_rows, self.result, sums, weight_scale=scale,
            **self.fused_options,
        )  # fmt: skip

    def _norm(self) -> tuple[Tensor, Tensor]:
        sums = self.x.float().square().unflatten(1, (-1, 64)).sum(-1).T.contiguous()
        return torch.ones_like(self.x[0]), sums

    def _swiglu(self, weight: Tensor, scale: Tensor | None) -> Call:
        norm, sums = self._norm()
        self.result = self.x.new_empty(self.x.shape[0], self.rows // 2)
        return lambda: ops.norm_swiglu(
            self.x, norm, weight, self.num_rows, EPS, self.result, sum_squares=sums,
            gate_up_scale=scale, **self.fused_options,
        )  # fmt: skip

    def _qkv(self, weight: Tensor, scale: Tensor | None) -> Call:
        s, R = self.shape, self.x.shape[0]
        norm, sums = (None, None) if "first" in self.name else self._norm()
        (cache,) = allocate_cache(
            1, R // BLOCK_SIZE + 1, s.num_kv_heads, BLOCK_SIZE, s.head_dim, E4M3, self.device
        )
        rope = rope_table(RopeConfig(), s.head_dim, 4096).to(self.device)
        positions = torch.arange(R, device=self.device)
        self.result = self.x.new_empty(R, s.num_heads, s.head_dim)
        return lambda: ops.qkv_rope_cache(
            self.x, norm, weight, None, None, None, rope, positions, positions, self.num_rows,
            cache.k_scale, cache.v_scale, EPS, cache.k, cache.v, self.result, sum_squares=sums,
            weight_scale=scale, **self.fused_options,
        )  # fmt: skip

    def baseline(self) -> Baseline:
        """The same layer in the reference, with bf16 weights; of the cache it returns the rows."""
        norm, sums = (None, None) if "first" in self.name else self._norm()
        R, num_kv_heads = self.x.shape[0], self.shape.num_kv_heads
        if self.name == "fc":
            size = self.columns // self.shape.num_taps
            taps = [x.contiguous() for x in self.x.split(size, dim=1)]
            return Baseline(_joined_product, [(taps, weight) for weight in self.weights])
        if self.name in ("o", "down"):
            residual = self.x.new_zeros(R, self.rows)
            return Baseline(
                reference.linear_residual,
                [(self.x, weight, None, residual) for weight in self.weights],
            )
        if self.name == "gate_up":
            rows = [(self.x, norm, weight, EPS, sums) for weight in self.weights]
            return Baseline(reference.norm_swiglu, rows)
        rope = rope_table(RopeConfig(), self.shape.head_dim, 4096).to(self.device)
        positions = torch.arange(R, device=self.device)
        return Baseline(
            reference.qkv_rope,
            [
                (self.x, norm, weight, None, None, None, rope, positions, num_kv_heads, EPS, sums)
                for weight in self.weights
            ],
        )

    def compiled(self) -> list[Call]:
        """The baseline under torch.compile.

        Raises:
            PEagleError: It cannot run, or computes something else.
        """
        if self.quantised:
            raise PEagleError("torch.compile: is timed with bf16 weights alone")
        (call, *_) = self.fused()
        call()
        return self.baseline().compiled(self.result, TOLERANCE)

    def check(self) -> None:
        """The ops and float32 agree, where they do nothing but multiply.

        Raises:
            BenchmarkError: They do not.
        """
        if self.name not in ("fc", "o", "down"):
            return
        weight = self.weights[0].float()
        if self.quantised:
            weight = self.quantised[0][0].float() * self.quantised[0][1][:, None]
        x = quantize_activations(self.x) if self.fp8_activations else self.x
        product = x.float() @ weight.T
        for kind in ("fused", "cutlass") if self.has_cutlass else ("fused",):
            (call, *_) = getattr(self, kind)()
            call()
            error = (self.result.float() - product).abs().max().item()
            if not error <= TOLERANCE:
                raise BenchmarkError(
                    f"{self.name}: the {kind} op is {error:.3g} off, not worth timing"
                )


def _joined_product(taps: list[Tensor], weight: Tensor) -> Tensor:
    return torch.cat(taps, dim=1) @ weight.T


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """e4m3 with a scale for each row."""
    scale = weight.float().abs().amax(dim=1) / torch.finfo(E4M3).max
    return (weight.float() / scale[:, None]).to(E4M3), scale


def measure(
    drafters: list[str],
    rows: list[int],
    formats: list[str],
    device: torch.device,
    json: Path | None = None,
    compile: bool = False,
) -> dict[str, Any]:
    """Time every layer of every drafter, once where two share a shape; `json` grows with each.

    `compile` adds the reference under torch.compile.
    """
    bandwidth = copy_bandwidth(device)
    cases = {
        (shape.linear_layers()[layer], fmt, R): (drafter, layer)
        for R in rows
        for drafter in drafters
        for shape in [DRAFTERS[drafter]]
        for layer in shape.linear_layers()
        for fmt in formats
    }
    report: dict[str, Any] = {
        **environment(), "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "drafters": {name: asdict(DRAFTERS[name]) for name in drafters},
        "results": [], "errors": [],
    }  # fmt: skip
    for ((N, K), fmt, R), (drafter, name) in tqdm(cases.items(), unit="case"):
        copies = num_copies(N * K * (2 if fmt == "bf16" else 1), device)
        try:
            layer = Layer(name, DRAFTERS[drafter], R, fmt, device, copies)
            layer.check()
            candidates = layer.candidates()
            left_out = {}
            if compile:
                try:
                    candidates["compiled"] = layer.compiled()
                except PEagleError as error:
                    left_out["compiled"] = str(error)
            timings = time_candidates(candidates)
        except (PEagleError, RuntimeError) as error:  # of this case: the others may go well
            what = {"drafter": drafter, "layer": name, "weight": fmt, "rows": R}
            report["errors"].append({**what, "error": str(error).splitlines()[0]})
            write_json(json, report)
            continue
        fused_us, cublas_us = timings["fused"].median_us, timings["cublas"].median_us
        gigabytes = layer.weight_bytes / (fused_us * 1e-6)
        cutlass = timings.get("cutlass")
        report["results"].append({
            "drafter": drafter, "layer": name, "rows_of_weight": N, "columns": K, "weight": fmt,
            "rows": R, "copies": copies, "fused": timings["fused"].as_json(),
            "cublas_bf16": timings["cublas"].as_json(), "gb_per_s": round(gigabytes / 1e9, 1),
            "share_of_copy": round(gigabytes / bandwidth, 3),
            "cublas_over_fused": round(cublas_us / fused_us, 3), "left_out": left_out,
            "cutlass": cutlass and cutlass.as_json(),
            "cublas_over_cutlass": cutlass and round(cublas_us / cutlass.median_us, 3),
        })  # fmt: skip
        if "compiled" in timings:
            report["results"][-1] |= {
                "compiled_bf16": timings["compiled"].as_json(),
                "compiled_over_fused": round(timings["compiled"].median_us / fused_us, 3),
            }
        write_json(json, report)
    return report


def table(report: dict[str, Any]) -> str:
    """Markdown, a line for each case."""
    lines = [
        "| Weight | | Rows | Fused us | GB/s | of copy | cuBLAS us | cuBLAS / fused "
        "| cuBLAS / CUTLASS | compiled / fused |",
        "|" + " --- |" * 10,
    ]
    lines += [
        f"| {r['drafter']} {r['layer']} [{r['rows_of_weight']}, {r['columns']}] | {r['weight']} "
        f"| {r['rows']} | {r['fused']['median_us']:.2f} | {r['gb_per_s']:.0f} "
        f"| {r['share_of_copy']:.0%} | {r['cublas_bf16']['median_us']:.2f} "
        f"| {r['cublas_over_fused']:.2f} | {r['cublas_over_cutlass'] or '-'} "
        f"| {r.get('compiled_over_fused', '-')} |"
        for r in report["results"]
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure, print a table, write the JSON that was asked for."""
    options = _parser().parse_args()
    try:
        device = device_to_time(dry_run=options.dry_run)
        with ClockWatch() as clocks:
            report = measure(
                options.drafter, options.rows, options.weights, device, options.json,
                options.compile,
            )  # fmt: skip
        clocks.note(report)
        write_json(options.json, report)
        print(table(report))
    except (PEagleError, OSError) as error:
        print(f"bench_linear: error: {error}", file=sys.stderr)
        return 2
    for failed in report["errors"]:
        print(f"bench_linear: error: {failed}", file=sys.stderr)
    return 1 if report["errors"] else 0


def _parser() -> OneLineParser:
    parser = OneLineParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--drafter", choices=DRAFTERS, nargs="+", default=["gpt-oss-20b"])
    parser.add_argument("--rows", type=positive_int, nargs="+", default=[1, 7, 10, 14, 16, 24, 32])
    parser.add_argument("--weights", choices=WEIGHT_FORMATS, nargs="+", default=["bf16", "e4m3"])
    parser.add_argument("--compile", action="store_true", help="torch.compile, too; takes minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU; measures nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
