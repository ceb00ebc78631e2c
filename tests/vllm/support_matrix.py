"""Results of these tests -> the table of what works with which vLLM.

    pytest tests/vllm --junitxml=result.xml
    python tests/vllm/support_matrix.py result.xml ...   keep the results, rewrite the table
    python tests/vllm/support_matrix.py                  rewrite the table

A test tells what it covers with `@pytest.mark.feature("...")` and its parameter `runner`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from p_eagle_cuda.arguments import OneLineParser
from p_eagle_cuda.errors import PEagleError
from p_eagle_cuda.vllm_plugin.versions import V1_VERSIONS, V2_VERSIONS, unsupported_version

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DOCUMENT = HERE.parents[1] / "python" / "p_eagle_cuda" / "vllm_plugin" / "README.md"
BEGIN, END = "<!-- support: begin -->\n", "<!-- support: end -->\n"
WORKS, FAILS, UNTRIED, ASIDE = "yes", "no", "not tried", "steps aside"


def read_junit(file: Path) -> dict[str, Any]:
    """What pytest wrote: vLLM's version, the date, and "yes" or "no" by runner and feature.

    A feature works if a test of it passed and none failed; skipped tests tell nothing.

    Raises:
        PEagleError: There is no such result in it.
    """
    try:
        suites = ElementTree.parse(file).getroot().findall("testsuite")
    except (OSError, ElementTree.ParseError) as error:
        raise PEagleError(f"{file}: expected what pytest --junitxml writes ({error})") from None
    versions = {
        x.get("value", "") for suite in suites for x in suite.findall("properties/property")
        if x.get("name") == "vllm"
    }  # fmt: skip
    if len(versions) != 1:
        raise PEagleError(f"{file}: expected the version of one vLLM, found {sorted(versions)}")
    works: dict[str, dict[str, bool]] = {}
    for case in (case for suite in suites for case in suite.findall("testcase")):
        if case.find("skipped") is not None:
            continue
        passed = case.find("failure") is None and case.find("error") is None
        properties = [
            (x.get("name"), x.get("value", "")) for x in case.findall("properties/property")
        ]
        for runner in (value for name, value in properties if name == "runner"):
            features = works.setdefault(runner, {})
            for feature in (value for name, value in properties if name == "feature"):
                features[feature] = features.get(feature, True) and passed
    shown = {
        runner: {feature: WORKS if ok else FAILS for feature, ok in features.items()}
        for runner, features in works.items()
    }
    return {"vllm": versions.pop(), "date": date.today().isoformat(), "works": shown}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Rows for each runner and vLLM that the plugin knows, a column for each feature.

    Versions that follow each other and have the same cells are one row.
    """
    features = list(
        dict.fromkeys(
            feature for result in results for found in result["works"].values() for feature in found
        )
    )
    lines = [
        f"| Runner | vLLM | {' | '.join(features)} | Tried |",
        "|" + " --- |" * (3 + len(features)),
    ]
    (major, oldest), (_, newest) = V1_VERSIONS
    for runner, versions in (("V1", V1_VERSIONS), ("V2", V2_VERSIONS)):
        rows = []
        for minor in range(newest, oldest - 1, -1):
            release = f"{major}.{minor}"
            found = [x for x in results if x["vllm"].startswith(f"{release}.")]
            last = max(found, key=lambda x: x["date"], default={"works": {}})
            works = last["works"].get(runner, {})
            if unsupported_version(release, *versions) is not None:
                cells = [ASIDE] * len(features) + ["-"]
            elif not works:
                cells = [UNTRIED] * len(features) + ["-"]
            else:
                cells = [works.get(x, UNTRIED) for x in features] + [last["date"]]
                release = last["vllm"]
            rows.append((release, tuple(cells)))
        for cells, group in groupby(rows, key=lambda row: row[1]):
            releases = [release for release, _ in group]
            shown = releases[0] if len(releases) == 1 else f"{releases[-1]} to {releases[0]}"
            lines.append(f"| {runner} | {shown} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def read_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """All that was kept."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def with_table(document: str, table: str) -> str:
    """The document with the table between its marks.

    Raises:
        PEagleError: It has no such marks, or several.
    """
    if document.count(BEGIN) != 1 or document.count(END) != 1:
        raise PEagleError(f"{DOCUMENT}: expected one line {BEGIN.strip()} and one {END.strip()}")
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Keep results and rewrite the table; returns the exit code."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("junit", nargs="*", type=Path)
    try:
        for file in parser.parse_args(arguments).junit:
            result = read_junit(file)
            RESULTS.mkdir(exist_ok=True)
            kept = RESULTS / f"{result['vllm']}.json"
            kept.write_text(json.dumps(result, indent=2) + "\n")
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(), table(read_results())))
    except PEagleError as error:
        print(f"support_matrix: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
