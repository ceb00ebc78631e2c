"""What can be said of the compiled library without a GPU."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor

import p_eagle_cuda
from elf import Elf
from p_eagle_cuda import _C, _registry, ops

CSRC = Path(__file__).parents[1] / "csrc"
LIBRARY = Path(str(files("p_eagle_cuda") / "libp_eagle_ops.so"))
# In every process: the C and C++ runtimes and the loader. All else would be a dependency on CUDA,
# on Python or on one build of torch.
RUNTIMES = re.compile(r"lib(stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so\.\d|ld-linux[\w-]*\.so\.\d")
WEAK_STREAM = "aoti_torch_get_current_cuda_stream"
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


@pytest.fixture(scope="module")
def library() -> Elf:
    return Elf(LIBRARY.read_bytes())


@pytest.mark.parametrize("name", ops.implementations())
@pytest.mark.parametrize("key", ["CPU", "CUDA", "Meta"])
def test_every_op_has_an_answer_for_every_device(name: str, key: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"p_eagle::{name}", key)


def test_implementations_are_those_of_the_library() -> None:
    with_cuda = {name for name, has in ops.implementations().items() if has["cuda"]}
    assert with_cuda == set(_C.cuda_ops())
    assert "embed_norm_concat" in with_cuda
    assert all(has["cpu"] for has in ops.implementations().values())


def embed_norm_concat_arguments() -> dict[str, Tensor | float | bool]:
    R, H, V = 3, 64, 10
    weights = {"embedding": torch.randn(V, H)}
    weights |= {name: torch.randn(H) for name in ("mask_hidden", "embed_weight", "hidden_weight")}
    return {
        "token_ids": torch.arange(R),
        "source_row": torch.tensor([0, -1, 1], dtype=torch.int32),
        "num_rows": torch.tensor([R], dtype=torch.int32),
        "embedding": weights["embedding"].bfloat16(),
        "hidden": torch.randn(R, H).bfloat16(),
        **{name: x.bfloat16() for name, x in weights.items() if name != "embedding"},
        "eps": 1e-6,
        "norm_before_residual": False,
        "out": torch.zeros(R, 2 * H).bfloat16(),
        "residual": torch.zeros(R, H).bfloat16(),
    }


def test_the_compiled_kernel_takes_the_schema_and_checks_its_arguments() -> None:
    """Sends CPU tensors to the CUDA implementation, which refuses them before it launches."""
    op = torch.ops.p_eagle.embed_norm_concat.default
    arguments = embed_norm_concat_arguments()
    assert list(arguments) == [argument.name for argument in op._schema.arguments]
    with pytest.raises(RuntimeError, match="embed_norm_concat: `hidden` must be on a CUDA device"):
        op.redispatch(CUDA, *arguments.values())


def test_an_op_without_a_cuda_kernel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    ran_on_cpu = []
    with torch.library._scoped_library("p_eagle", "FRAGMENT") as fragment:
        monkeypatch.setattr(_registry, "_LIBRARY", fragment)
        monkeypatch.setattr(_registry, "_DEFINED", [])
        _registry.define("only_on_cpu(Tensor(a!) x) -> ()", lambda x: lambda: ran_on_cpu.append(x))
        _registry.load_library()
        assert ops.implementations() == {"only_on_cpu": {"cpu": True, "cuda": False}}

        op, x = torch.ops.p_eagle.only_on_cpu.default, torch.zeros(1)
        with pytest.raises(RuntimeError, match="only_on_cpu has no CUDA kernel in this build"):
            op.redispatch(CUDA, x)
        assert not ran_on_cpu
        op(x)
        assert len(ran_on_cpu) == 1


def test_a_missing_library_says_how_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(p_eagle_cuda, "_C")
    monkeypatch.setitem(sys.modules, "p_eagle_cuda._C", None)
    with pytest.raises(ImportError, match=r"not built.*`pip install \.` in a clone") as caught:
        _registry.load_library()
    assert "\n" not in str(caught.value)


def test_build_information() -> None:
    assert _C.version == version("p_eagle_cuda") == p_eagle_cuda.__version__
    assert _C.cuda_archs
    assert set(_C.cuda_archs) <= {"80", "89", "90a", "100a", "120a"}
    for number in (_C.cuda_version, _C.nvcc_version, _C.cutlass_version):
        assert re.fullmatch(r"\d+(\.\d+){1,2}", number)
    assert _C.nvcc_version.startswith(_C.cuda_version)


def test_needs_libtorch_and_no_other_library(library: Elf) -> None:
    needed = [name for name in library.needed() if not RUNTIMES.fullmatch(name)]
    assert needed == ["libtorch.so"]


def test_needs_only_symbols_of_a_torch_without_cuda(library: Elf) -> None:
    of_torch = [name for name in library.undefined() if "torch" in name]
    assert len(of_torch) > 10, "expected to find the stable ABI among the undefined symbols"
    assert WEAK_STREAM not in of_torch
    cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    assert not [name for name in of_torch if not hasattr(cpu, name)]
    assert not [name for name in library.undefined() if name.startswith(("cuda", "cu", "Py"))]


def test_every_symbol_resolves_at_load() -> None:
    ctypes.CDLL(str(LIBRARY), mode=os.RTLD_NOW)


def test_offers_only_what_the_python_module_asks_for(library: Elf) -> None:
    """Above all not the CUDA runtime inside it, which another library might then bind to."""
    (name,) = library.defined()
    assert "p_eagle8cuda_ops" in name


def test_import_is_silent_and_touches_no_gpu() -> None:
    code = "import p_eagle_cuda.ops, torch; assert not torch.cuda.is_initialized()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_holds_code_for_the_architectures_that_it_names(library: Elf) -> None:
    archs = {cubin.cuda_arch() for cubin in library.cubins()}
    assert archs == {int(arch.rstrip("af")) for arch in _C.cuda_archs}


def test_no_kernel_uses_local_memory(library: Elf) -> None:
    for cubin in library.cubins():
        assert cubin.resources(), "expected kernels in every CUDA binary"
        assert set(cubin.stack_frames()) == {0}, f"spills for sm_{cubin.cuda_arch()}"


def test_attention_uses_tensor_cores_and_asynchronous_copies(library: Elf) -> None:
    hmma, ldsm, ldgsts = 0x23C, 0x83B, 0xFAE
    for cubin in library.cubins():
        for kernel, opcodes in cubin.opcodes().items():
            if "paged_attention_kernel" in kernel:
                assert {hmma, ldsm, ldgsts} <= opcodes, f"{kernel} for sm_{cubin.cuda_arch()}"
    kernels = [name for cubin in library.cubins() for name in cubin.opcodes()]
    count = sum("paged_attention_kernel" in name for name in kernels)
    assert count == 12 * len(_C.cuda_archs)  # 2 working dtypes, 3 of caches, 2 head sizes


@pytest.mark.parametrize(
    ("sources", "forbidden"),
    [
        ("kernels/*", "torch/"),
        ("common/*", "torch/"),
        ("ops.h", "torch/|cute/|cutlass/"),
        ("bindings/*", "cute/|cutlass/"),
    ],
)
def test_torch_and_kernels_meet_only_in_ops_h(sources: str, forbidden: str) -> None:
    paths = list(CSRC.glob(sources))
    assert paths
    for path in paths:
        includes = re.findall(r"^\s*#\s*include\s*[<\"](.*)[>\"]", path.read_text(), re.MULTILINE)
        assert includes, f"{path.name} includes nothing"
        assert not [name for name in includes if re.match(forbidden, name)]
