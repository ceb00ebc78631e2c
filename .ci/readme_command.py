"""Prints a command of README.md: the code block after the line ``<!-- command: NAME -->``.

What continuous integration runs is then what the README says, word for word.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def command(readme: str, name: str) -> str:
    """The command called `name` in the text of a README.

    Raises:
        ValueError: It has none of that name, or several.
    """
    marker = rf"^<!-- command: {re.escape(name)} -->\n+```\w*\n(.*?)^```$"
    found = re.findall(marker, readme, re.MULTILINE | re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"README.md: expected one command '{name}', found {len(found)}")
    return str(found[0]).strip()


if __name__ == "__main__":
    print(command(README.read_text(encoding="utf-8"), sys.argv[1]))
