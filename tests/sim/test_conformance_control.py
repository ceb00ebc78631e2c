"""Control flow: branches, loops, calls, scopes, exits, printf, assertions."""

from __future__ import annotations

import numpy as np
import pytest

from sim.micro_kernels import Conformance

INT = np.int32
LANES = np.arange(32, dtype=INT)


def wrap(x: int) -> int:
    """A C int."""
    return (x + 2**31) % 2**32 - 2**31


def remainder(a: int, b: int) -> int:
    """As in C: with the sign of `a`."""
    return int(np.fmod(a, b))


def run(conformance: Conformance, kernel: str, x: np.ndarray, columns: int = 0) -> np.ndarray:
    shape = (len(x), columns) if columns else len(x)
    (got,) = conformance.run(
        "control.cu", kernel, inputs=[x.astype(INT)], outputs=[(shape, INT)], block=len(x)
    )
    return got


# ---- Branches ------------------------------------------------------------------------------------


def test_divergent_loops(conformance: Conformance) -> None:
    def expected(n: int) -> int:
        total = 0
        for i in range(n):
            if i % 3 == 1:
                continue
            for k in range(i, n, 2):
                total = total * 5 + k
                if total > 1000:
                    total %= 1000
                    break
        return total

    x = (np.arange(64) * 7) % 23
    got = run(conformance, "divergent_loops", x)
    np.testing.assert_array_equal(got, [expected(int(n)) for n in x])


def test_nested_branches(conformance: Conformance) -> None:
    def expected(x: int) -> list[int]:
        if x >= 0:
            return [7, 8, 9 if x > 20 else 10] if x > 10 else [11, 11, 11]
        if x >= -10:
            return [1, 5, 6]
        return [1, 2 if x % 2 == 0 else 3, 4 if x == -13 else 6]

    x = np.array([0, -13, 15, 25, -5, -12, 10, 11, 20, 21, -10, -11, -1, -14, -15, 30] * 4)
    got = run(conformance, "nested_branches", x, 3)
    np.testing.assert_array_equal(got, [expected(int(v)) for v in x])


def test_switch(conformance: Conformance) -> None:
    x = (LANES * 5) % 12 - 1
    table = {0: 10, 1: 23, 2: 4, 3: 9, 4: -4, 5: -5, 9: 99}
    got = run(conformance, "switch_statement", x)
    np.testing.assert_array_equal(got, [table.get(int(v), 7) for v in x])


def test_indexed_branch(conformance: Conformance) -> None:
    x = (LANES * 3) % 6
    got = run(conformance, "indexed_branch", x)
    np.testing.assert_array_equal(got, np.array([10, 21, 0, 21, 1000, 1000])[x])


# ---- Leaving -------------------------------------------------------------------------------------


def test_early_exit(conformance: Conformance) -> None:
    (got,) = conformance.run("control.cu", "early_exit", outputs=[(32, INT)])
    following = LANES + np.array([1, 1, -2, 0])[LANES % 4]
    np.testing.assert_array_equal(got, np.where(LANES % 4 == 3, -LANES, following**2 + following))


def test_guarded_exit(conformance: Conformance) -> None:
    x = np.resize([6, 0, 3, -1, 5, 100], 32)
    got = run(conformance, "guarded_exit", x)
    np.testing.assert_array_equal(got, np.where(x > 5, 1, np.where(x > 0, 3, 2)))


# ---- Calls ---------------------------------------------------------------------------------------


def collatz_steps(n: int) -> int:
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


def sum_of_steps(count: int, skip: int) -> int:
    history = [collatz_steps(i + 3) if i < count and i != skip else -i for i in range(8)]
    total = 0
    for i in range(8):
        total = wrap(total * 3 + history[(i * 5 + count) % 8])
    return total


def test_calls(conformance: Conformance) -> None:
    def expected(x: int) -> list[int]:
        first, second, tag = x, 0.5, ord("a")
        for i in range(x % 3):
            first, second, tag = first * (i + 2), second + i + 2, tag - 1
        if x % 5 == 0:
            first, second, tag = -1, 0.0, ord("n")
        return [first, int(second * 2), -7 if tag == ord("n") else tag, sum_of_steps(x % 9, x % 4)]

    x = np.arange(1, 65, dtype=INT)
    (got,) = conformance.run(
        "control.cu", "calls", inputs=[x], outputs=[np.full((64, 4), -7, INT)], block=64
    )
    np.testing.assert_array_equal(got, [expected(int(v)) for v in x])


def test_local_array(conformance: Conformance) -> None:
    def expected(x: int) -> int:
        values = [i * x for i in range(16)]
        for i in range(40):
            values[(i * x) & 15] = (values[(i * x) & 15] + (values[(i + x) & 15] ^ i)) % 2**32
        total = 0
        for value in values:
            total = (total * 31 + value) % 2**32
        return total

    x = np.arange(3, 67)
    got = run(conformance, "local_array", x).view(np.uint32)
    np.testing.assert_array_equal(got, [expected(int(v)) for v in x])


def test_tables(conformance: Conformance) -> None:
    x = (LANES * 11) % 27
    numbers, weights, names = conformance.run(
        "control.cu", "tables", inputs=[x], outputs=[(32, INT), (32, np.float32), (32, INT)]
    )
    primes = np.array([2, 3, 5, 7, 11, 13, 17, 19])
    np.testing.assert_array_equal(numbers, primes[x & 7] * 1000 + np.array([100, 201])[x & 1])
    np.testing.assert_array_equal(weights, np.float32([0.5, -1.25, 3, 1e-3])[x & 3])
    words = ["zero", "one", "two"]
    np.testing.assert_array_equal(
        names, [len(words[v % 3]) * 256 + ord(words[v % 3][0]) for v in x]
    )


# ---- Values that live across branches ------------------------------------------------------------


def live_values(x: int) -> list[int]:
    before = x * 7 + 3
    a, b, kept, last, toggle = x, 1, -1, 0, 0
    for i in range(12 + x % 5):
        a, b = b, wrap(a + b)
        if b & 3 == 1:
            kept = b ^ i
        for k in range((x + i) % 4):
            mixed = wrap(kept + k * toggle)
            if remainder(mixed, 3) == 0:
                last = mixed
            else:
                toggle = last - i
        if i == x:
            a ^= before
    return [a, b, kept, last, toggle, before]


def test_live_values(conformance: Conformance) -> None:
    x = np.arange(64)
    got = run(conformance, "live_values", x, 6)
    np.testing.assert_array_equal(got, [live_values(int(v)) for v in x])


def test_guarded_writes(conformance: Conformance) -> None:
    def expected(x: int) -> int:
        total, kept = 0, 1000
        for i in range(7):
            kept = i * x if i % 4 == x else kept
            total = total * 3 + kept
        return total

    x = LANES % 6
    got = run(conformance, "guarded_writes", x)
    np.testing.assert_array_equal(got, [expected(int(v)) for v in x])


def test_used_behind_a_way_out(conformance: Conformance) -> None:
    got = run(conformance, "used_behind_a_way_out", LANES)
    np.testing.assert_array_equal(got, sum(5 * LANES + 7 * i for i in range(5)))


def test_scopes(conformance: Conformance) -> None:
    got = run(conformance, "scopes", LANES)
    np.testing.assert_array_equal(got, 2 * np.where(LANES > 8, 100_015, 101_005))


# ---- About the execution -------------------------------------------------------------------------


def test_clocks(conformance: Conformance) -> None:
    (got,) = conformance.run("control.cu", "clocks", outputs=[(32, INT)])
    np.testing.assert_array_equal(got, 1)


def test_active_lanes(conformance: Conformance) -> None:
    (got,) = conformance.run("control.cu", "active_lanes", outputs=[(32, np.uint32)])
    odd = LANES % 2 == 1
    active = np.where(odd, got, ~got)
    assert ((active >> LANES.astype(np.uint32)) & 1).all(), "a lane is not active itself"
    others = np.where(odd, 0x55555555, 0xAAAAAAAA).astype(np.uint32)
    np.testing.assert_array_equal(active & others, 0)


def test_hints(conformance: Conformance) -> None:
    np.testing.assert_array_equal(run(conformance, "hints", LANES + 5), LANES + 5)


def test_printf(conformance: Conformance, capfd: pytest.CaptureFixture[str]) -> None:
    conformance.needs_emulator()
    x = np.where(LANES % 5 == 2, LANES // 5, -1)
    got = run(conformance, "print", x)
    np.testing.assert_array_equal(got, np.where(x < 0, -1, 9))
    names = ["zero", "one", "two"]
    expected = [
        f"[{v}] {names[v % 3]} {v * 0.25:5.2f} {chr(97 + v)} {2**40 + v:x} {v:<4}|%|{v:3} -5"
        for v in x[x >= 0].tolist()
    ]
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(expected)


# ---- Kernels that cannot go on -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "kind", "message"),
    [
        ("failed_assertion", "trap", "assertion `x != 7` failed, "),
        ("trapped", "trap", "trap by lanes 7"),
        ("index_without_label", "trap", "brx.idx with index 3, but there are 1 labels"),
        ("recursion", "ptx", "a recursive call"),
        ("indirect_call", "ptx", "an indirect call"),
        ("unknown_register", "ptx", "unknown name %envreg3"),
    ],
)
def test_faults(conformance: Conformance, kernel: str, kind: str, message: str) -> None:
    reports = conformance.run_faulty(
        "faults_control.cu", kernel, inputs=[LANES], outputs=[(32, INT)], n=[3]
    )
    assert [report.kind for report in reports] == [kind]
    assert message in reports[0].message
    assert "faults_control.cu:" in reports[0].message + reports[0].where
