"""What GPUs give by their data sheets, and what of it is taken to be reached."""

from __future__ import annotations

from dataclasses import dataclass, replace

from p_eagle_cuda.errors import PEagleError

# What large copies and products reach of a data sheet's figures.
REACHED_BANDWIDTH = 0.9
REACHED_PRODUCTS = 0.8
EXPONENTIALS_PER_CLOCK = 16  # of an SM


@dataclass(frozen=True)
class Gpu:
    """A GPU's peaks, dense and with float32 accumulation.

    Attributes:
        architecture: Such as "sm_90".
        peak_tb_per_s: Of its memory.
        peak_tflops: Of bf16 products.
        num_sms: Streaming multiprocessors.
        ghz: Their clock at that peak.
        measured_tb_per_s: What copies reach; a share of the peak where it was not measured.
        measured_tflops: What products reach; likewise.
    """

    architecture: str
    peak_tb_per_s: float
    peak_tflops: float
    num_sms: int
    ghz: float
    measured_tb_per_s: float | None = None
    measured_tflops: float | None = None

    @property
    def bytes_per_s(self) -> float:
        """That a large copy is taken to move, read and written."""
        return 1e12 * (self.measured_tb_per_s or REACHED_BANDWIDTH * self.peak_tb_per_s)

    @property
    def flops_per_s(self) -> float:
        """Of a large bf16 product."""
        return 1e12 * (self.measured_tflops or REACHED_PRODUCTS * self.peak_tflops)

    @property
    def exponentials_per_s(self) -> float:
        """Of all SMs together."""
        return self.num_sms * EXPONENTIALS_PER_CLOCK * self.ghz * 1e9


# NVIDIA's data sheets; SXM modules where there are several forms.
GPUS = {
    "a100": Gpu("sm_80", 2.04, 312, 108, 1.41),
    "h100": Gpu("sm_90", 3.35, 989, 132, 1.83),
    "h100-pcie": Gpu("sm_90", 2.0, 756, 114, 1.62),
    "h200": Gpu("sm_90", 4.8, 989, 132, 1.83),
    "b200": Gpu("sm_100", 8.0, 2250, 148, 1.86),
    "l4": Gpu("sm_89", 0.3, 121, 58, 2.04),
    "l40s": Gpu("sm_89", 0.864, 362, 142, 2.49),
    "rtx4090": Gpu("sm_89", 1.008, 165, 128, 2.52),
    "rtx5090": Gpu("sm_120", 1.792, 209, 170, 2.41),
}


def find_gpu(
    name: str, measured_tb_per_s: float | None = None, measured_tflops: float | None = None
) -> Gpu:
    """A GPU by its name in `GPUS`, with the rates that it was measured to reach, if any.

    Raises:
        PEagleError: There is none of that name.
    """
    if name.lower() not in GPUS:
        raise PEagleError(f"--gpu must be one of {', '.join(GPUS)}, got {name!r}")
    return replace(
        GPUS[name.lower()], measured_tb_per_s=measured_tb_per_s, measured_tflops=measured_tflops
    )
