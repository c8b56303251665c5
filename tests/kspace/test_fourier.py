from __future__ import annotations

import pytest
import torch

from kspace.fourier import central, centre_crop, fft, ifft, interpolate, resize


@pytest.mark.parametrize("shape", [(8, 6), (7, 5), (8, 5), (1, 9), (1, 1)])
def test_fft_is_the_defining_sum(shape: tuple[int, int]) -> None:
    ny, nx = shape
    image = torch.randn(2, *shape, dtype=torch.complex128)

    def matrix(n: int) -> torch.Tensor:
        i = torch.arange(n, dtype=torch.float64) - n // 2
        return torch.exp(-2j * torch.pi * i[:, None] * i[None, :] / n) / n**0.5

    expected = matrix(ny) @ image @ matrix(nx).T
    assert torch.allclose(fft(image), expected, atol=1e-12)
    assert torch.allclose(ifft(expected), image, atol=1e-12)


@pytest.mark.parametrize("n", [6, 7])
@pytest.mark.parametrize("m", [4, 5, 9, 10])
def test_resize_keeps_the_origin_and_undoes_itself(n: int, m: int) -> None:
    x = torch.zeros(n)
    x[n // 2] = 1
    assert resize(x, (m,))[m // 2] == 1
    y = torch.arange(1.0, n + 1)
    if m >= n:
        assert torch.equal(resize(resize(y, (m,)), (n,)), y)
        with pytest.raises(ValueError, match="cannot crop"):
            centre_crop(y, (m + 1,))


@pytest.mark.parametrize("n", [7, 8, 9, 10])
@pytest.mark.parametrize("m", [3, 4, 5, 6, 7])
def test_central_keeps_the_origin(n: int, m: int) -> None:
    kept = list(range(n))[central(n, m)]
    assert len(kept) == m
    assert kept[m // 2] == n // 2
    assert torch.equal(centre_crop(torch.arange(n), (m,)), torch.tensor(kept))


@pytest.mark.parametrize(("n", "m"), [(16, 24), (15, 24), (16, 25), (17, 33), (24, 16)])
def test_interpolate_samples_the_same_band_limited_function(n: int, m: int) -> None:
    k = torch.arange(-3, 4, dtype=torch.float64)
    c = torch.randn(7, dtype=torch.complex128)

    def function(points: int) -> torch.Tensor:
        r = (torch.arange(points, dtype=torch.float64) - points // 2) / points
        return (c * torch.exp(2j * torch.pi * r[:, None] * k)).sum(1)

    image = function(n)[:, None] * function(n)[None, :]
    expected = function(m)[:, None] * function(m)[None, :]
    assert torch.allclose(interpolate(image, (m, m)), expected, atol=1e-12)


def test_only_one_file_calls_the_fourier_transform() -> None:
    from tests.conftest import ROOT

    callers = {
        str(path.relative_to(ROOT))
        for folder in ("kspace", "models", "recon")
        for path in (ROOT / folder).rglob("*.py")
        if any(name in path.read_text() for name in ("torch.fft", "np.fft", "numpy.fft", "scipy.fft"))
    }
    assert callers <= {"kspace/fourier.py"}
