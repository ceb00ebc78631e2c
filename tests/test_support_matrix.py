"""The table of what works with which vLLM is what the results of the tests make it."""

from __future__ import annotations

import ast
import json
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent / "vllm"
JUNIT = """<testsuites><testsuite name="pytest"><properties>
<property name="vllm" value="{version}"/></properties>{cases}</testsuite></testsuites>"""
CASE = """<testcase name="a"><properties><property name="runner" value="{runner}"/>
<property name="feature" value="{feature}"/></properties>{outcome}</testcase>"""


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    spec = spec_from_file_location("support_matrix", FOLDER / "support_matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def case(runner: str, feature: str, outcome: str = "") -> str:
    return CASE.format(runner=runner, feature=feature, outcome=outcome and f"<{outcome}/>")


def test_the_document_has_the_table_of_the_results(matrix: ModuleType) -> None:
    document = matrix.DOCUMENT.read_text()
    assert matrix.with_table(document, matrix.table(matrix.read_results())) == document, (
        "run: python tests/vllm/support_matrix.py"
    )


def marked_features() -> set[str]:
    """The arguments of all feature marks."""
    calls = [
        node
        for file in FOLDER.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.feature"
    ]
    return {ast.literal_eval(argument) for call in calls for argument in call.args}


def test_what_is_claimed_is_what_is_tested(matrix: ModuleType) -> None:
    """For the version that continuous integration installs."""
    (version,) = re.findall(r"^version=\$\{3:-(.*)\}$", (FOLDER / "install.sh").read_text(), re.M)
    (result,) = [x for x in matrix.read_results() if x["vllm"] == version]
    claimed = {feature for found in result["works"].values() for feature in found}
    assert claimed == marked_features(), "keep the results anew, see tests/vllm/README.md"


def test_versions_that_are_served_were_tried(matrix: ModuleType) -> None:
    """Each of them, and no older or newer one: the plugin steps aside there."""
    tried: dict[str, set[tuple[int, ...]]] = {"V1": set(), "V2": set()}
    for result in matrix.read_results():
        for runner, found in result["works"].items():
            if found.get("Same drafts as vLLM's") == matrix.WORKS:
                tried[runner].add(tuple(map(int, result["vllm"].split(".")[:2])))
    for runner, (oldest, newest) in (("V1", matrix.V1_VERSIONS), ("V2", matrix.V2_VERSIONS)):
        assert oldest[0] == newest[0]
        served = {(oldest[0], minor) for minor in range(oldest[1], newest[1] + 1)}
        assert tried[runner] == served, runner


def test_cells(matrix: ModuleType, tmp_path: Path) -> None:
    """A failure outweighs any pass, a skipped test is none; what has no result was not tried."""
    cases = [
        case("V1", "drafts"), case("V1", "drafts", "failure"), case("V1", "drafts"),
        case("V1", "text"), case("V2", "text"), case("V2", "cache", "skipped"),
        case("V2", "drafts", "error"), '<testcase name="of something else"/>',
    ]  # fmt: skip
    file = tmp_path / "result.xml"
    file.write_text(JUNIT.format(version="0.33.1", cases="".join(cases)))
    result = matrix.read_junit(file)
    assert result["vllm"] == "0.33.1"
    assert result["works"] == {
        "V1": {"drafts": "no", "text": "yes"}, "V2": {"text": "yes", "drafts": "no"}
    }  # fmt: skip
    old = {"vllm": "0.32.0", "date": "2026-01-02", "works": {"V1": {"cache": "yes"}}}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in matrix.table([{**result, "date": "2026-03-04"}, old]).splitlines()
    ]
    assert rows[0] == ["Runner", "vLLM", "drafts", "text", "cache", "Tried"]
    assert rows[2:] == [
        ["V1", "0.33.1", "no", "yes", "not tried", "2026-03-04"],
        ["V1", "0.32.0", "not tried", "not tried", "yes", "2026-01-02"],
        ["V1", "0.28 to 0.31", "not tried", "not tried", "not tried", "-"],
        ["V2", "0.33.1", "no", "yes", "not tried", "2026-03-04"],
        ["V2", "0.32", "not tried", "not tried", "not tried", "-"],
        ["V2", "0.28 to 0.31", "steps aside", "steps aside", "steps aside", "-"],
    ]


def test_results_are_kept_and_shown(
    matrix: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(matrix, "DOCUMENT", tmp_path / "README.md")
    monkeypatch.setattr(matrix.read_results, "__defaults__", (tmp_path / "results",))
    (tmp_path / "README.md").write_text(f"a\n{matrix.BEGIN}old\n{matrix.END}b\n")
    (tmp_path / "r.xml").write_text(JUNIT.format(version="0.33.0", cases=case("V1", "text")))
    assert matrix.main([str(tmp_path / "r.xml")]) == 0
    kept = json.loads((tmp_path / "results" / "0.33.0.json").read_text())
    assert kept["works"] == {"V1": {"text": "yes"}}
    shown = (tmp_path / "README.md").read_text()
    assert shown.startswith(f"a\n{matrix.BEGIN}\n| Runner | vLLM | text | Tried |\n")
    assert shown.endswith(f"|\n\n{matrix.END}b\n")
    assert "old" not in shown


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected what pytest --junitxml writes"),
        ("<testsuites/>", r"expected the version of one vLLM, found \[\]"),
    ],
)
def test_other_files_are_refused(
    content: str, message: str, matrix: ModuleType, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "r.xml").write_text(content)
    with pytest.raises(matrix.PEagleError, match=message):
        matrix.read_junit(tmp_path / "r.xml")
    assert matrix.main([str(tmp_path / "r.xml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
