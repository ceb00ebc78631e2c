"""What an evaluation found: a table, JSON, a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from p_eagle_cuda.errors import EvaluationError
from p_eagle_cuda.statistics import Acceptance

_COLUMNS = ("Dataset", "Prompts", "K", "Acceptance length", "Accepted by position")


@dataclass(frozen=True)
class Result:
    """Acceptance on one dataset.

    Attributes:
        dataset: Its title.
        num_prompts: Prompts that were sent.
        acceptance: As vLLM counted it, over all verification steps.
        num_draft_tokens: Drafts that were verified.
        num_accepted_tokens: Drafts that were accepted.
        num_generated_tokens: Tokens that the server handed out meanwhile, to whoever asked.
        num_own_tokens: Those that were handed out to us.
        seconds: How long it took.
    """

    dataset: str
    num_prompts: int
    acceptance: Acceptance
    num_draft_tokens: int
    num_accepted_tokens: int
    num_generated_tokens: int
    num_own_tokens: int
    seconds: float

    @property
    def note(self) -> str | None:
        """What makes the figures doubtful, if anything does."""
        if self.num_generated_tokens == self.num_own_tokens:
            return None
        cause = (
            "it served others too, and the figures are of all it did"
            if self.num_generated_tokens > self.num_own_tokens
            else "expected the /metrics of the one server that answers all requests"
        )
        return (
            f"{self.dataset}: the server counted {self.num_generated_tokens} tokens, ours are "
            f"{self.num_own_tokens}: {cause}"
        )

    def as_json(self) -> dict[str, Any]:
        """All of it, by name."""
        return {
            "dataset": self.dataset,
            "num_prompts": self.num_prompts,
            "acceptance_length": self.acceptance.length,
            "per_position": self.acceptance.per_position,
            "num_drafts": self.acceptance.steps,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_tokens": self.num_accepted_tokens,
            "num_generated_tokens": self.num_generated_tokens,
            "num_own_tokens": self.num_own_tokens,
            "seconds": self.seconds,
        }


def table(results: Sequence[Result]) -> str:
    """The model cards' figures, one dataset a line, as a Markdown table."""
    rows = [_COLUMNS, tuple("---" for _ in _COLUMNS)]
    for result in results:
        found = result.acceptance
        positions = " ".join(f"{share:.2f}" for share in found.per_position)
        rows.append(
            (
                result.dataset, str(result.num_prompts), str(len(found.per_position)),
                f"{found.length:.2f}", positions,
            )
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in rows
    )


def check_plot(file: str) -> None:
    """Find out before the work whether a plot can be written.

    Raises:
        EvaluationError: It cannot.
    """
    if find_spec("matplotlib") is None:
        raise EvaluationError("--plot needs matplotlib: pip install 'p_eagle_cuda[plot]'")
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(file).suffix[1:].lower() not in known:
        raise EvaluationError(f"--plot: expected a file that ends in .{', .'.join(known)}")
    if not Path(file).absolute().parent.is_dir():
        raise EvaluationError(f"--plot: {Path(file).absolute().parent} is no folder")


def plot(results: Sequence[Result], title: str, file: str) -> None:
    """Draw the share of accepted drafts by position, a line for each dataset."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for result in results:
        shares = result.acceptance.per_position
        axes.plot(
            range(1, len(shares) + 1), shares, marker="o",
            label=f"{result.dataset}, acceptance length {result.acceptance.length:.2f}",
        )  # fmt: skip
    axes.set(title=title, xlabel="Position of the draft", ylabel="Accepted", ylim=(0, 1))
    axes.set_xticks(range(1, max(len(x.acceptance.per_position) for x in results) + 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file)
