"""What the compiler made of the kernels: their instructions, and no more registers than before.

That nothing spills is in `test_extension.py`, too.
"""

from __future__ import annotations

import os
import re

import pytest

import kernel_resources
from elf import Elf
from kernel_resources import LIBRARY
from p_eagle_cuda import _C
from sass import Kernel, find_nvdisasm, kernels
from sim import summary

# What each kernel must have. Every kernel of the library needs an entry here.
#   LDG, STG       loads and stores of global memory, .128 for 16 bytes of a thread
#   LDGSTS         asynchronous copies to shared memory; BYPASS leaves L1 alone
#   LDS, STS       shared memory; LDSM whole matrices
#   ATOMS          its atomics
#   HMMA, HGMMA    tensor cores, of a warp and of a warpgroup; QGMMA in FP8
#   UTCHMMA, LDTM  tensor cores with tensor memory, and loads of that
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
    "wide_kernel": ["UTMALDG.5D", "LDGSTS.BYPASS.128", "SYNCS"],  # HGMMA or QGMMA, see below
    # collective_kernel, by its products
    "Sm90Products": ["HGMMA", "UTMALDG.2D", "UTMALDG.4D", "LDG.128", "STG.128", "SYNCS"],
    "Sm100Products": ["UTCHMMA", "UTMALDG.2D", "UTMALDG.4D", "LDTM", "LDG.128", "STG.128", "SYNCS"],
    "linear_kernel": ["HMMA.16816.F32", "LDGSTS.BYPASS.128", "LDS.128", "STS.128", "LDG.128"],
}
# Elsewhere they are empty, or in no library that has none of their architecture.
ONLY_ON = {"wide_kernel": 90, "Sm90Products": 90, "Sm100Products": 100}
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


def test_no_kernel_takes_more_of_an_sm_than_the_table_says() -> None:
    """More, a new kernel or none: `python tests/kernel_resources.py`, if it is meant."""
    table = kernel_resources.read_table()
    if table["nvcc"] != _C.nvcc_version:
        reason = f"the table is of nvcc {table['nvcc']}, the library of {_C.nvcc_version}"
        if os.environ.get("P_EAGLE_REQUIRE_SIM") == "1":
            pytest.fail(f"{reason}; run: python tests/kernel_resources.py")
        pytest.skip(reason)
    found = kernel_resources.measured()
    assert found.keys() & table["kernels"].keys(), f"no table for {', '.join(found)}"
    worse, better = [], []
    for arch in found.keys() & table["kernels"].keys():
        for all_lines, lines in zip(
            (worse, better),
            kernel_resources.differences(table["kernels"][arch], found[arch]),
            strict=True,
        ):
            all_lines += [f"{arch} {line}" for line in lines]
    if better:
        summary.notes.append("kernels take less, run: python tests/kernel_resources.py")
        summary.notes.extend(better)
    assert not worse, "run: python tests/kernel_resources.py\n" + "\n".join(worse)


def test_differences_of_resources_are_told() -> None:
    before = {"same": [10, 0, 5], "more": [10, 0, 5], "less": [10, 0, 5], "gone": [1, 0, 0]}
    now = {"same": [10, 0, 5], "more": [11, 0, 9], "less": [10, 0, 4], "new": [1, 0, 0]}
    worse, better = kernel_resources.differences(before, now)
    assert worse == [
        "gone: is no longer there",
        "new: is not in the table",
        "more: registers 10 -> 11",
        "more: shared_bytes 5 -> 9",
    ]
    assert better == ["less: shared_bytes 5 -> 4"]


def test_names_of_kernels_are_told_apart() -> None:
    names = {
        "_ZN7p_eagle11wide_kernelINS_10WideConfigIN7cutlass6half_tELi256EEENS_10StoreHeadsIS3_"
        "Li64EEEEEvNT0_6ParamsE14CUtensorMap_st": "wide_kernel WideConfig half_t 256 StoreHeads 64",
        "_ZN7p_eagle50_GLOBAL__N__5dcb9943_17_prepare_inputs_cu_5297389221prepare_inputs_kernelENS_"
        "19PrepareInputsParamsE": "prepare_inputs_kernel",
        "_ZN7p_eagle19logit_floors_kernelINS_12LogitsConfigIfLb1EEEEEvNS_17LogitFloorsParamsE": (
            "logit_floors_kernel LogitsConfig float 1"
        ),
    }
    assert {name: kernel_resources.readable(name) for name in names} == names


def test_every_kernel_has_its_instructions(compiled: list[Kernel]) -> None:
    for kernel in compiled:
        kind = kind_of(kernel)
        if ONLY_ON.get(kind, kernel.arch) != kernel.arch:
            assert len(kernel.opcodes) < 32, f"{kernel.name} for sm_{kernel.arch} is not empty"
            continue
        for opcode in EXPECTED[kind]:
            assert kernel.count(opcode), f"{kernel.name}: expected {opcode}"
    archs = {kernel.arch for kernel in compiled}
    absent = {x for x, arch in ONLY_ON.items() if x.endswith("Products") and arch not in archs}
    assert {kind_of(kernel) for kernel in compiled} == set(EXPECTED) - absent


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
    """Four steps of 32 bytes of columns, for all tokens of a tile; in FP8 for 128 at a time."""
    wide = [x for x in compiled if kind_of(x) == "wide_kernel" and x.arch == 90]
    sizes = set()
    for kernel in wide:
        ((is_fp8, num_tokens),) = re.findall(r"WideConfigI.*?Lb([01])ELi(\d+)EEE", kernel.name)
        counts = {name: kernel.count(name) for name in ("HGMMA", "QGMMA")}
        sizes.add((num_tokens, is_fp8 == "1"))
        if is_fp8 == "1":
            parts = int(num_tokens) // 128
            assert kernel.count("QGMMA.64x128x32.F32.E4M3.E4M3") == 4 * parts, kernel.name
            assert counts == {"HGMMA": 0, "QGMMA": 4 * parts}, kernel.name
        else:
            assert kernel.count(f"HGMMA.64x{num_tokens}x16.F32") == 4, kernel.name
            assert counts == {"HGMMA": 4, "QGMMA": 0}, kernel.name
    expected = {("64", False), ("128", False), ("256", False), ("128", True), ("256", True)}
    assert sizes == (expected if "90a" in _C.cuda_archs else set())


def test_collectives_multiply_a_tile_at_once(compiled: list[Kernel]) -> None:
    """Four steps of 16 columns, of the first block of a tile and of the others.

    TMA brings both operands, the weight to two CTAs where they share it.
    """
    collective = [x for x in compiled if kind_of(x) == "Sm90Products" and x.arch == 90]
    clusters = []
    for kernel in collective:
        (cluster,) = map(int, re.findall(r"Sm90ProductsI.*?Li(\d+)EEE", kernel.name))
        assert kernel.count("HGMMA.64x256x16.F32") == kernel.count("HGMMA") == 8, kernel.name
        assert kernel.count("UTMALDG") == 2, kernel.name
        assert kernel.count("UTMALDG.4D.MULTICAST") == (cluster == 2), kernel.name
        assert kernel.count("LDGSTS") == 0, kernel.name
        clusters.append(cluster)
    # Two kinds of epilogue, two dtypes.
    assert sorted(clusters) == ([1] * 4 + [2] * 4 if "90a" in _C.cuda_archs else [])


def test_the_head_multiplies_nothing_twice(compiled: list[Kernel]) -> None:
    """Four MMAs for each 16 rows of the weight and eight tokens, two sets of warps or one."""
    head = [kernel for kernel in compiled if kind_of(kernel) == "lm_head_topk_kernel"]
    sizes = set()
    for kernel in head:
        (num_tokens,) = map(int, re.findall(r"ELi(\d+)EEEEEv", kernel.name))  # of HeadConfig
        assert kernel.count("HMMA") == 4 * num_tokens // 8, kernel.name
        sizes.add(num_tokens)
    assert sizes == {8, 16, 32, 64, 128, 256}
