"""What an entry of the tables of planted bugs says."""

from __future__ import annotations

from dataclasses import dataclass

WRONG_RESULT = "wrong result"  # found by comparison with the reference, no report
LAUNCH_ERROR = "launch error"  # a launch function returned a CUDA error


@dataclass(frozen=True)
class Bug:
    """An error put into a kernel by replacing some of its text.

    Attributes:
        kernel: A key of `sample_kernels.SAMPLES`.
        name: What is wrong, for people.
        old: Text that occurs exactly once in the file.
        new: What takes its place.
        finds: What must be among the findings: the kind of a report, or one of the constants above.
        file: The name of the file, one of `Sample.files`; `<kernel>.cu` where it is empty.
        benign: Why this is no error after all. Then nothing may be found.
    """

    kernel: str
    name: str
    old: str
    new: str = ""
    finds: str = ""
    file: str = ""
    benign: str = ""

    def __post_init__(self) -> None:
        assert bool(self.finds) != bool(self.benign), f"{self}: expected either finds or benign"
