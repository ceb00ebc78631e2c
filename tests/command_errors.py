"""How every command line tells a mistake of its user."""

from __future__ import annotations


def assert_one_line(result: tuple[int, str, str], message: str) -> None:
    """Of an exit code, stdout and stderr."""
    code, out, err = result
    assert code == 2
    assert message in err
    assert err.count("\n") == 1, err
    assert not out
