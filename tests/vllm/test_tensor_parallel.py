"""A target on two ranks, with the whole drafter on each: the bundled pair, and one made of it.

The latter has a window in all of the target's layers but one, and a drafter of one layer, without a
vocabulary of its own. So its caches have blocks of 32 positions, where the target's have 64, and
embedding and head are put together from the target's shards.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_fixtures import HERE, Serve, Served, environment
from safetensors.torch import load_file, save_file
from test_serving import ENGINE, SPECULATIVE, SPLIT, assert_whole_on_each_rank, request

from p_eagle_cuda.bundled import bundled_drafter, bundled_target

pytest_plugins = ["engine_fixtures"]

ASKED = [
    [request(0, 9, 6), request(3, 40, 6), request(5, 70, 5, join_after=1)],
    [request(5, 80, 5)],  # the most of which the caches have, if prefixes are kept
]


def rewritten(
    folder: Path, source: Path, changes: dict[str, Any], keeps: Callable[[str], bool]
) -> str:
    """A copy of a checkpoint with another configuration, and not all of its tensors."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    (file,) = folder.glob("*.safetensors")
    tensors = {name: x for name, x in load_file(file).items() if keeps(name)}
    save_file(tensors, file)
    return str(folder)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The engine's arguments with the target that has windows."""
    layers = ["full_attention", *["sliding_attention"] * 4]
    target = rewritten(
        tmp_path_factory.mktemp("target") / "windowed", bundled_target(),
        {"layer_types": layers, "sliding_window": 32}, lambda _: True,
    )  # fmt: skip
    return {"model": target, "block_size": 32, "enable_prefix_caching": True}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the drafter of one layer, without a vocabulary of its own."""
    dropped = ("layers.", "embed_tokens.", "lm_head.")
    drafter = rewritten(
        tmp_path_factory.mktemp("drafter") / "bare", bundled_drafter(), {"num_hidden_layers": 1},
        lambda name: not name.startswith(dropped),
    )  # fmt: skip
    return {**SPECULATIVE, "model": drafter}


@pytest.fixture(scope="module")
def on_one_rank(serve: Serve, windowed: dict[str, Any], bare: dict[str, Any]) -> Served:
    return serve(ASKED, speculative=bare, **{**ENGINE, **windowed})


@pytest.mark.feature("Tensor parallelism")
@pytest.mark.parametrize("runner", ["V2"])
def test_caches_of_other_blocks_and_no_vocabulary(
    runner: str, on_one_rank: Served, serve: Serve, windowed: dict[str, Any], bare: dict[str, Any]
) -> None:
    """Drafts are those of one rank, and those of V1."""
    ours = serve(ASKED, speculative=bare, v2=runner == "V2", **{**SPLIT, **windowed})
    said = assert_whole_on_each_rank(ours)
    assert all("0.5 MiB gathered from the target's vocabulary" in x for x in said), said
    assert ours.outputs == on_one_rank.outputs
    assert ours.counters == on_one_rank.counters
    assert sorted(map(len, ours.drafts)) == sorted(map(len, on_one_rank.drafts))
    assert ours.drafts[0] == on_one_rank.drafts[0]


@pytest.mark.feature("Tensor parallelism")
def test_vllms_own_serves_where_its_caches_do_not_fit(
    on_one_rank: Served, serve: Serve, windowed: dict[str, Any]
) -> None:
    """Next to one layer without a window vLLM has four groups of caches for the drafter's four."""
    served = serve(ASKED[:1], speculative=SPECULATIVE, **{**SPLIT, **windowed})
    (warning,) = [x for x in served.log if x.startswith("WARNING")]
    assert "into 4 groups of caches, expected one" in warning
    assert served.outputs == on_one_rank.outputs[:1]
    assert served.counters["num_accepted_tokens"] > 0


def test_plans_of_caches(vllm_python: str, tmp_path: Path) -> None:
    """VLLM has caches for the whole drafter of gpt-oss next to 2, 4 and 8 ranks of the target."""
    subprocess.run(
        [vllm_python, HERE / "plan_caches.py", tmp_path / "result.json"],
        env=environment(v2=False), check=True, timeout=300,
    )  # fmt: skip
    found = json.loads((tmp_path / "result.json").read_text())
    reasons = {name: case["reason"] for name, case in found.items() if case["reason"]}
    assert set(reasons) == {"gpt-oss-120b, TP 2, LHBNC", "more layers than of a kind, TP 2"}
    assert "need a block-compact layout" in reasons["gpt-oss-120b, TP 2, LHBNC"]
    assert "2 groups of caches, expected one" in reasons["more layers than of a kind, TP 2"]
    for tp in (1, 2, 4, 8):
        groups = found[f"gpt-oss-120b, TP {tp}"]["groups"]
        (of_drafter,) = [group for group in groups if group[2]]
        assert of_drafter[:2] == ([22, 16] if tp == 1 else [4, 16])
        # A block of the target's holds as many bytes, in as many more positions.
        assert {group[1] for group in groups if not group[2]} == {16 * tp}
    assert found["no windows, TP 2"]["groups"] == [[36, 16, True]]
