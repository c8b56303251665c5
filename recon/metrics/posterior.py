"""Quality of draws of a posterior: PSNR of their mean, their spread, and the conditional Frechet distance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

CFID_FEATURES = "MR features, level 1, mean over positions"


def psnr_of_means(truth: NDArray, draws: NDArray, support: NDArray, counts: Sequence[int]) -> dict[int, float]:
    """PSNR in dB, by the number of draws, of the magnitude of the mean of the first draws.

    Parameters
    ----------
    truth
        Magnitudes, ``(y x)``; their maximum is the range.
    draws
        Complex ``(draw y x)``.
    support
        Bool ``(y x)``: where the error counts.
    counts
        Numbers of draws.
    """
    found = {}
    for n in counts:
        error = np.abs(draws[:n].mean(0)) - truth
        found[n] = float(10 * np.log10(truth.max() ** 2 / np.mean(error[support] ** 2)))
    return found


def apsd(draws: NDArray, support: NDArray) -> float:
    """Average pixel-wise standard deviation of complex draws ``(draw y x)`` on `support` ``(y x)``, over their mean magnitude.

    Bendel 2023, arXiv 2210.13389; there in units of the image.
    """
    deviation = draws - draws.mean(0)
    std = np.sqrt((np.abs(deviation) ** 2).sum(0) / max(1, len(draws) - 1))
    return float(std[support].mean() / np.abs(draws.mean(0))[support].mean())


def gain_of_a_posterior(n: int) -> float:
    """PSNR in dB that the mean of `n` draws of the posterior gains over one draw: ``10 log10(2 n / (n + 1))``."""
    return float(10 * np.log10(2 * n / (n + 1)))


def cfid(target: NDArray, image: NDArray, condition: NDArray) -> float:
    """Conditional Frechet distance between joint distributions of features (Soloveitchik 2021, arXiv 2103.11521).

    ``|m_x - m_u|^2 + tr(S_x + S_u - 2 (S_x^(1/2) S_u S_x^(1/2))^(1/2)) + tr((C_xc - C_uc) C_cc^+ (C_xc - C_uc)^T)`` with S the
    covariance given the condition. 0 where image and target are distributed alike given the condition. It needs several times
    as many conditions as features.

    Parameters
    ----------
    target, image, condition
        Features x, u and c: float ``(n d)``, row by row of the same scan.
    """
    x, u, c = (np.asarray(a, np.float64) for a in (target, image, condition))
    inverse = np.linalg.pinv(np.atleast_2d(np.cov(c.T)), rcond=1e-8, hermitian=True)
    across = [_covariance(a, c) for a in (x, u)]
    given = [np.atleast_2d(np.cov(a.T)) - k @ inverse @ k.T for a, k in zip((x, u), across, strict=True)]
    root = _root(given[0])
    shared = np.trace(_root(root @ given[1] @ root))
    difference = across[0] - across[1]
    return float(
        ((x.mean(0) - u.mean(0)) ** 2).sum()
        + np.trace(given[0]) + np.trace(given[1]) - 2 * shared
        + np.trace(difference @ inverse @ difference.T)
    )  # fmt: skip


def mr_features_of(images: Sequence[NDArray]) -> NDArray:
    """Features `CFID_FEATURES` of magnitudes or complex images, each ``(y x)``: float64 ``(n 32)``. Each has maximum 1."""
    from models.parts.features import load_mr_features

    network, rows = load_mr_features(), []
    with torch.inference_mode():
        for image in images:
            x = torch.from_numpy(np.abs(image).astype(np.float32))[None, None]
            rows.append(F.adaptive_avg_pool2d(network.features(x / x.max().clamp(min=1e-30))[0], 1).flatten())
    found: NDArray = torch.stack(rows).double().numpy()
    return found


def _covariance(a: NDArray, b: NDArray) -> NDArray:
    found: NDArray = (a - a.mean(0)).T @ (b - b.mean(0)) / (len(a) - 1)
    return found


def _root(matrix: NDArray) -> NDArray:
    """Root of a positive semidefinite matrix ``(d d)``."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    found: NDArray = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return found
