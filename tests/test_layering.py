"""The package has one dependency direction; this keeps it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import p_eagle_cuda

# Each module or subpackage may import itself and the ones before it.
LAYERS = [
    "errors",
    "arguments",
    "fields",
    "config",
    "rope",
    "checkpoint",
    "precision",
    "quantized_cache",
    "weights",
    "noise",
    "tree",
    "verification",
    "penalties",
    "attention_work",
    "reference",
    "kv_cache",
    "_C",
    "_registry",
    "ops",
    "buffers",
    "linear_table",
    "linear_products",
    "linear",
    "cuda_limits",
    "tracing",
    "drafter_pass",
    "chunking",
    "cuda_graphs",
    "input_checks",
    "draft_length",
    "drafter",
    "target",
    "sampling",
    "statistics",
    "draft_tree",
    "engine",
    "bundled",
    "text",
    "generation",
    "evaluation",
    "planning",
    "train",
    "cli",
    "__main__",
    "vllm_plugin",
]

SOURCES = {
    str(path.relative_to(folder)): path
    for folder in map(Path, p_eagle_cuda.__path__)
    for path in sorted(folder.rglob("*.py"))
    if path != folder / "__init__.py"  # it names what the package offers, from any layer
}


def test_there_are_modules_to_check() -> None:
    assert len(SOURCES) > 10, f"found only {sorted(SOURCES)}"


@pytest.mark.parametrize("source", SOURCES)
def test_imports_only_lower_layers(source: str) -> None:
    layer = Path(source).parts[0].removesuffix(".py")
    assert layer in LAYERS, f"{source} belongs to no layer"
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    for imported in _imports(SOURCES[source], package=("p_eagle_cuda", *Path(source).parts[:-1])):
        assert imported in allowed, f"{source} imports {imported}, which is not below it"


def _imports(path: Path, package: tuple[str, ...]) -> set[str]:
    """The layers that a source file of `package` imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # Level 1 is the file's own package, each further level one package up.
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names]
        found |= {part[1] for part in parts if part[0] == "p_eagle_cuda" and len(part) > 1}
    return {name for name in found if not name.startswith("__")}  # __version__ is no module
