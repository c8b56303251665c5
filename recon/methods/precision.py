"""The precision in which networks compute: Fourier transforms and data consistency stay in single precision.

With bfloat16 the rounding of a network is 2^-9 of the correction that it adds, far below the noise, and convolutions take half
the time where the processor multiplies bfloat16 itself; elsewhere they take many times as long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the options of a command name a precision, and --help should not wait for torch
    import torch

Precision = Literal["auto", "fp32", "bf16"]
Used = Literal["fp32", "bf16"]


# Measured with ONEDNN_MAX_CPU_ISA, three convolutions of width 32 on 192 x 192 points, forward and backward, one thread:
# 0.6 times the time of fp32 with AVX512_CORE_BF16, 2 times with AVX512_CORE_VNNI, 33 times with AVX2.
SLOW = (
    "this processor does not multiply bfloat16 (no avx512_bf16 or amx_bf16 in lscpu): bf16 took 2 times (AVX-512) to 33 times "
    "(AVX2) as long as fp32 where that was measured"
)


def multiplies_bfloat16(device: torch.device | str) -> bool:
    """Whether the hardware multiplies bfloat16 itself."""
    import torch

    place = torch.device(device)
    if place.type == "cuda":
        return bool(torch.cuda.get_device_capability(place)[0] >= 8)  # Ampere and later
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def resolve(precision: Precision, device: torch.device | str) -> Used:
    """What `precision` means on `device`: ``auto`` is bf16 where the hardware multiplies it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16" if multiplies_bfloat16(device) else "fp32"
