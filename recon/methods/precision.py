"""The precision in which networks compute: Fourier transforms and data consistency stay in single precision.

With bfloat16 the rounding of a network is 2^-9 of the correction that it adds, far below the noise, and convolutions take half
the time where the processor multiplies bfloat16 itself; elsewhere they take longer.
"""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]
Used = Literal["fp32", "bf16"]


def resolve(precision: Precision, device: torch.device | str) -> Used:
    """What `precision` means on `device`: ``auto`` is bf16 where the hardware multiplies it, else fp32."""
    if precision != "auto":
        return precision
    place = torch.device(device)
    if place.type == "cuda":
        native = torch.cuda.get_device_capability(place)[0] >= 8  # Ampere and later
    else:
        able = torch.cpu.get_capabilities()
        native = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return "bf16" if native else "fp32"
