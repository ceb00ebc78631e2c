"""Matrix products of many rows on sm_100a, which nobody has run on a GPU yet.

On the emulator, and what the compiler has made of them. `test_collectives.py` has what is the same
on all architectures: how tiles are dealt, and the epilogues.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from elf import Elf
from hostsim import build
from sass import Kernel, find_nvdisasm, kernels
from sim import gemm_sample
from sim.emulator import FOUR, Settings
from sim.planting import Variants
from sim.sample import Run

FIRST, LAST = "launch_gemm_swiglu_sm100_from_c", "launch_gemm_sm100_from_c"
STEPS = 4  # of 16 columns in a block

kernel_sample = pytest.mark.parametrize("kernel", ["gemm_sm100"])


@kernel_sample
@pytest.mark.parametrize("settings", FOUR.values(), ids=FOUR)
@pytest.mark.parametrize(
    ("num_rows", "max_rows", "columns"),
    [(129, 300, 528), (300, 600, 80), (257, 257, 272), (1, 130, 656)],
)
def test_results(
    kernel: str, num_rows: int, max_rows: int, columns: int, settings: Settings, variants: Variants
) -> None:
    """Tiles that are cut, several for one CTA, CTAs without rows beside one that has some."""
    emulator, suffix = variants.load(kernel)
    with emulator.session(settings) as session:
        run = Run(session, suffix)
        gemm_sample.gemm(run, FIRST, LAST, num_rows=num_rows, max_rows=max_rows, columns=columns)
    wrong = [text for text in (output.mismatch() for output in run.outputs) if text]
    assert not wrong, "; ".join(wrong)


@kernel_sample
def test_compiled_code(kernel: str, variants: Variants, tmp_path: Path) -> None:
    """Tensor cores, tensor memory and TMA as meant; nothing spills, registers as on sm_90a."""
    ptx, cubin = tmp_path / "kernels.ptx", tmp_path / "kernels.cubin"
    text = variants.ptx(kernel)
    assert text.count("tcgen05.mma.") == STEPS * text.count(".entry ")
    ptx.write_text(text)
    ptxas = build.tools().nvcc.with_name("ptxas")
    strict = ["--warn-on-spills", "--warn-on-local-memory-usage", "--warning-as-error"]
    command = [ptxas, "-arch=sm_100a", "-O3", *strict, ptx, "-o", cubin]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    binary = Elf(cubin.read_bytes())
    assert binary.cuda_arch() == 100
    for name, found in binary.resources().items():
        assert (found.registers, found.stack_bytes) == (168, 0), name
    nvdisasm = find_nvdisasm()
    assert nvdisasm is not None, "nvdisasm is not there; `pip install '.[sim]'` brings it"
    compiled = kernels(binary, nvdisasm, tmp_path)
    for function in compiled:
        check_instructions(function)
    names = [x.name for x in compiled]
    assert any("GemmSwiglu" in x for x in names)
    assert any("GemmStore" in x for x in names)


def check_instructions(function: Kernel) -> None:
    is_shared = "Li2EEE" in function.name  # a weight, by two CTAs
    # A wait that fails has a copy of what comes after it.
    assert STEPS <= function.count("UTCHMMA") <= 2 * STEPS, function.name
    assert function.count("LDTM.16dp256bit.x16") == function.count("LDTM") > 0, function.name
    assert function.count("UTMALDG.2D") == function.count("UTMALDG.4D") == 1, function.name
    assert function.count("UTMALDG.4D.MULTICAST") == is_shared, function.name
    assert function.count("UTCBAR.MULTICAST") == is_shared, function.name
    for opcode in ("LDL", "STL", "HMMA", "HGMMA", "LDGSTS"):
        assert function.count(opcode) == 0, f"{function.name}: {opcode}"
    for opcode in ("LDG.128", "STG.128", "SYNCS"):
        assert function.count(opcode) > 0, f"{function.name}: {opcode}"
