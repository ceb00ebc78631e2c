"""What the compiler made of the kernels: the instructions that they are about are there.

Registers, spills and stack frames are in `test_extension.py`.
"""

from __future__ import annotations

import os
import re
from importlib.resources import files
from pathlib import Path

import pytest

from elf import Elf
from p_eagle_cuda import _C
from sass import Kernel, find_nvdisasm, kernels

LIBRARY = Path(str(files("p_eagle_cuda") / "libp_eagle_ops.so"))

# What each kernel must have. Every kernel of the library needs an entry here.
#   LDG, STG       loads and stores of global memory, .128 for 16 bytes of a thread
#   LDGSTS         asynchronous copies to shared memory; BYPASS leaves L1 alone
#   LDS, STS       shared memory; LDSM whole matrices
#   ATOMS          its atomics
#   HMMA, HGMMA    tensor cores, of a warp and of a warpgroup
#   UTMALDG        loads of tensors to shared memory
EXPECTED = {
    "prepare_inputs_kernel": ["LDG", "STG"],
    "embed_norm_concat_kernel": ["LDG.128", "STG.128"],
    "plan_attention_kernel": ["LDG", "STG"],
    "paged_attention_kernel": ["HMMA.16816.F32", "LDGSTS.BYPASS.128", "LDSM"],
    "prune_rows_kernel": ["LDG", "STG"],
    "norm_rows_kernel": ["LDG", "STG"],
    "gate_rows_kernel": ["LDG", "STG"],
    "rope_cache_kernel": ["LDG", "STG"],
    "lm_head_topk_kernel": ["HMMA.16816.F32", "LDGSTS.BYPASS.128", "LDS.128", "STS.128", "LDG.128"],
    "compact_cache_kernel": ["LDG", "STG"],
    "build_tree_kernel": ["LDG", "STG", "REDUX"],
    "verify_tiles_kernel": ["LDG", "STG", "REDUX"],
    "verify_walk_kernel": ["LDG.128", "STG", "REDUX"],  # lazy
    "logit_floors_kernel": ["LDG", "STG", "ATOMS", "REDUX"],
    "apply_penalties_kernel": ["LDG", "STG"],
    "wide_kernel": ["HGMMA", "UTMALDG.5D", "LDGSTS.BYPASS.128", "SYNCS"],
    "linear_kernel": ["HMMA.16816.F32", "LDGSTS.BYPASS.128", "LDS.128", "STS.128", "LDG.128"],
}
ONLY_ON = {"wide_kernel": 90}  # elsewhere they are empty
LOCAL_MEMORY = ("LDL", "STL")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Kernel]:
    """All kernels of the library, for every architecture that it holds."""
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        if os.environ.get("P_EAGLE_REQUIRE_SIM") == "1":
            pytest.fail("nvdisasm is not there; `pip install '.[sim]'` brings it")
        pytest.skip("needs nvdisasm")
    folder = tmp_path_factory.mktemp("sass")
    library = Elf(LIBRARY.read_bytes())
    found = [k for cubin in library.cubins() for k in kernels(cubin, nvdisasm, folder)]
    assert found, "the library holds no kernel"
    assert all(kernel.opcodes for kernel in found), "nvdisasm prints something else than expected"
    return found


def kind_of(kernel: Kernel) -> str:
    """The name of a kernel without namespaces and arguments."""
    names = [name for name in EXPECTED if name in kernel.name]
    assert len(names) == 1, f"{kernel.name}: expected to be one of {', '.join(EXPECTED)}"
    return names[0]


def test_every_kernel_has_its_instructions(compiled: list[Kernel]) -> None:
    for kernel in compiled:
        kind = kind_of(kernel)
        if ONLY_ON.get(kind, kernel.arch) != kernel.arch:
            assert len(kernel.opcodes) < 32, f"{kernel.name} for sm_{kernel.arch} is not empty"
            continue
        for opcode in EXPECTED[kind]:
            assert kernel.count(opcode), f"{kernel.name}: expected {opcode}"
    assert {kind_of(kernel) for kernel in compiled} == set(EXPECTED)


def test_aligned_rows_move_in_16_bytes(compiled: list[Kernel]) -> None:
    """Whatever is 16 bits wide; row counts, indices and scales are read one by one."""
    wide = [kernel for kernel in compiled if re.search(r"RowVectorI\w+?ELi8EE", kernel.name)]
    kinds = {kind_of(kernel) for kernel in wide}
    assert kinds == {"norm_rows_kernel", "gate_rows_kernel", "rope_cache_kernel"}
    for kernel in wide:
        assert kernel.count("LDG.128"), kernel.name
        assert kernel.count("STG.128"), kernel.name
        # FP8 caches take eight bytes of a thread.
        narrow = kernel.count("STG") - kernel.count("STG.128") - kernel.count("STG.64")
        assert narrow == 0, f"{kernel.name}: {narrow} narrow stores"


def test_aligned_logits_are_read_in_16_bytes(compiled: list[Kernel]) -> None:
    wide = [kernel for kernel in compiled if re.search(r"LogitsConfigI\w+?Lb1EE", kernel.name)]
    assert {kind_of(kernel) for kernel in wide} == {"verify_tiles_kernel", "logit_floors_kernel"}
    for kernel in wide:
        assert kernel.count("LDG.128"), kernel.name


def test_no_kernel_uses_local_memory(compiled: list[Kernel]) -> None:
    for kernel in compiled:
        assert not any(kernel.count(opcode) for opcode in LOCAL_MEMORY), kernel.name


def test_weights_are_copied_in_16_bytes(compiled: list[Kernel]) -> None:
    """And past L1, whose lines the other operands want."""
    for kernel in compiled:
        assert kernel.count("LDGSTS") == kernel.count("LDGSTS.BYPASS.128"), kernel.name


def test_tensor_cores_do_what_is_meant(compiled: list[Kernel]) -> None:
    """Four MMAs for each eight tokens, the depth of a block: nothing is multiplied twice."""
    tokens = {f"ELi{n}EEENS": n for n in (8, 16, 32)}  # the last argument of LinearConfig
    linear = [kernel for kernel in compiled if kind_of(kernel) == "linear_kernel"]
    for kernel in linear:
        (num_tokens,) = {n for mark, n in tokens.items() if mark in kernel.name}
        assert kernel.count("HMMA") == 4 * num_tokens // 8, kernel.name


def test_warpgroups_multiply_a_tile_at_once(compiled: list[Kernel]) -> None:
    """Four steps of 16 columns for all tokens of a tile."""
    wide = [x for x in compiled if kind_of(x) == "wide_kernel" and x.arch == 90]
    sizes = set()
    for kernel in wide:
        (num_tokens,) = map(int, re.findall(r"WideConfigI.*?Li(\d+)EEE", kernel.name))
        assert kernel.count(f"HGMMA.64x{num_tokens}x16.F32") == 4, kernel.name
        assert kernel.count("HGMMA") == 4, kernel.name
        sizes.add(num_tokens)
    assert sizes == ({64, 128, 256} if "90a" in _C.cuda_archs else set())


def test_the_head_multiplies_nothing_twice(compiled: list[Kernel]) -> None:
    """Four MMAs for each 16 rows of the weight and eight tokens, two sets of warps or one."""
    head = [kernel for kernel in compiled if kind_of(kernel) == "lm_head_topk_kernel"]
    sizes = set()
    for kernel in head:
        (num_tokens,) = map(int, re.findall(r"ELi(\d+)EEEEEv", kernel.name))  # of HeadConfig
        assert kernel.count("HMMA") == 4 * num_tokens // 8, kernel.name
        sizes.add(num_tokens)
    assert sizes == {8, 16, 32, 64, 128, 256}
