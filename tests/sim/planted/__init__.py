"""Kernels with one error each: tables of what the emulator must find."""

from sim.planted import (
    attention,
    copies,
    filters,
    gemm,
    gemms,
    linear_layers,
    lm_head_topk,
    project,
    reductions,
    rows,
    trees,
    warps_and_launches,
    wide_layers,
)
from sim.planted.bug import LAUNCH_ERROR, WRONG_RESULT, Bug

BUGS: tuple[Bug, ...] = (
    *reductions.BUGS,
    *gemms.BUGS,
    *copies.BUGS,
    *warps_and_launches.BUGS,
    *project.BUGS,
    *linear_layers.BUGS,
    *wide_layers.BUGS,
    *gemm.BUGS,
    *lm_head_topk.BUGS,
    *attention.BUGS,
    *rows.BUGS,
    *trees.BUGS,
    *filters.BUGS,
)

__all__ = ["BUGS", "LAUNCH_ERROR", "WRONG_RESULT", "Bug"]
