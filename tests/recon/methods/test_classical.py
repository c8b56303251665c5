"""Reconstructors against dense algebra, against a second solver, and against brute force over wavelet shifts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pywt
import sigpy
import torch
from torch import Tensor

from kspace.errors import InputError
from kspace.fourier import fft, ifft
from kspace.operators import Sense as Op
from recon.methods import classical, solvers
from recon.methods.choose import OnDevice
from recon.methods.classical import CgSense, L1Wavelet, TotalVariation, ZeroFilled, make, objective, rss
from recon.methods.grappa import Grappa
from recon.methods.regularisers import Gradient, Sparsity, Wavelet

SHAPE = (24, 20)
ALL = [ZeroFilled(), CgSense(), L1Wavelet(levels=2), TotalVariation()]
SPARSE = [L1Wavelet(levels=2), TotalVariation()]


def problem(shape: tuple[int, int] = SHAPE, n_coils: int = 3, noise: float = 0.01, lines: bool = True) -> tuple[Tensor, Op]:
    """Noisy undersampled k-space ``(coil ky kx)`` of blocks with a phase, and its operator."""
    y, x = (torch.linspace(-1, 1, n) for n in shape)
    image = torch.zeros(shape, dtype=torch.complex64)
    image[shape[0] // 4 : -shape[0] // 4, shape[1] // 5 : -shape[1] // 5] = 1
    image[shape[0] // 3 : shape[0] // 2, shape[1] // 3 : shape[1] // 2] = 0.4
    image *= torch.exp(1j * (0.7 * y[:, None] + 0.3 * x[None, :]))
    if n_coils == 1:
        maps = torch.ones(1, *shape, dtype=torch.complex64)
    else:
        angles = 2 * torch.pi * torch.arange(n_coils) / n_coils
        maps = torch.stack([torch.exp(-((y[:, None] - a.sin()) ** 2) - (x[None, :] - a.cos()) ** 2 + 1j * a) for a in angles])
        maps = maps / torch.linalg.vector_norm(maps, dim=0)
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(shape[0], 1 if lines else shape[1], generator=generator) < 0.45
    mask[shape[0] // 2 - 3 : shape[0] // 2 + 3] = True
    op = Op(maps, mask)
    data = op.forward(image)
    return data + noise * torch.randn(data.shape, dtype=data.dtype, generator=generator) * mask, op


def dense(op: Op) -> np.ndarray:
    """The matrix of W^(1/2) A in complex128, sampled rows and all others."""
    n = op.maps.shape[-2] * op.maps.shape[-1]
    double = Op(op.maps.to(torch.complex128), op.mask)
    identity = torch.eye(n, dtype=torch.complex128).reshape(n, *op.maps.shape[-2:])
    columns = double.forward(identity) * op.weights.sqrt()
    return columns.reshape(n, -1).T.numpy()


def test_zero_filled_is_the_adjoint() -> None:
    y, op = problem()
    expected = (ifft(y) * op.maps.conj()).sum(0)
    assert torch.allclose(ZeroFilled()(y, op), expected, atol=1e-6)


def test_rss_of_coil_images() -> None:
    y, _ = problem()
    assert torch.allclose(rss(y), ifft(y).abs().square().sum(0).sqrt(), atol=1e-6)


@pytest.mark.parametrize("lamda", [1e-3, 1e-1])
@pytest.mark.parametrize("n_averages", [False, True])
def test_sense_solves_the_dense_system(lamda: float, n_averages: bool) -> None:
    y, op = problem()
    if n_averages:
        counts = op.mask.int() * torch.arange(1, op.mask.shape[0] + 1).remainder(3).add(1)[:, None]
        op = replace(op, n_averages=counts)
    a = dense(op)
    weighted = (y * op.weights.sqrt()).reshape(-1).numpy()
    # SENSE sees the largest weight as 1, so lamda is relative to it.
    top = float(op.weights.max())
    expected = np.linalg.solve(a.conj().T @ a + top * lamda * np.eye(a.shape[1]), a.conj().T @ weighted).reshape(SHAPE)
    image = CgSense(lamda=lamda, tolerance=1e-7)(y, op).numpy()
    assert np.linalg.norm(image - expected) < 1e-4 * np.linalg.norm(expected)


def chambolle_pock(method: L1Wavelet | TotalVariation, y: Tensor, op: Op, iterations: int) -> Tensor:
    """A second solver, in double precision and with nothing in common with ADMM: the primal-dual method of Chambolle and Pock
    2011, doi:10.1007/s10851-010-0251-1, with both the data term and the regulariser dualised."""
    maps, w = op.maps.to(torch.complex128), op.weights.double()
    y = y.to(torch.complex128)
    g: Sparsity = method.regulariser((y.shape[-2], y.shape[-1]))
    lamda = method.lamda * float((ifft(y * w) * maps.conj()).sum(0).abs().max())
    bound = 1 + float(g.gram_eigenvalues.max())
    # The regularisers live with the origin in the corner; circular shifts change neither norm.
    x = torch.zeros(y.shape[-2:], dtype=torch.complex128)
    bar, p, q = x, torch.zeros_like(y), torch.zeros_like(g.forward(x))
    tau, sigma = 20 / bound**0.5 * lamda, 1 / (20 * bound**0.5 * lamda)
    for _ in range(iterations):
        p = (p + sigma * w.sqrt() * (fft(maps * bar) - y)) / (1 + sigma)
        q = q + sigma * g.forward(bar)
        q = q - sigma * g.shrink(q / sigma, lamda / sigma)
        new = x - tau * ((maps.conj() * ifft(w.sqrt() * p)).sum(0) + g.adjoint(q))
        bar, x = 2 * new - x, new
    return x


@pytest.mark.parametrize("method", SPARSE, ids=lambda m: m.name)
@pytest.mark.parametrize("n_coils", [1, 3])
def test_sparse_methods_find_the_minimum_that_another_solver_finds(method: Any, n_coils: int) -> None:
    y, op = problem(n_coils=n_coils)
    method = replace(method, lamda=5e-3)
    ours, theirs = method(y, op), chambolle_pock(method, y, op, 3000)
    best = objective(method, theirs, y, op)
    assert objective(method, ours, y, op) < best * (1 + 1e-3)
    assert torch.linalg.vector_norm(ours - theirs) < 0.05 * torch.linalg.vector_norm(theirs)


class SigpyTransform(sigpy.linop.Linop):
    """``G`` of a regulariser, or its adjoint, for SigPy."""

    def __init__(self, oshape: tuple[int, ...], ishape: tuple[int, ...], forward: Any, adjoint: Any) -> None:
        super().__init__(oshape, ishape)
        self.both = forward, adjoint

    def _apply(self, x: np.ndarray) -> np.ndarray:
        return self.both[0](torch.from_numpy(x)).numpy()

    def _adjoint_linop(self) -> SigpyTransform:
        return SigpyTransform(self.ishape, self.oshape, self.both[1], self.both[0])


class SigpyShrinkage(sigpy.prox.Prox):
    """The proximal operator of ``lamda r`` for SigPy."""

    def __init__(self, shape: tuple[int, ...], g: Sparsity, lamda: float) -> None:
        super().__init__(shape)
        self.g, self.lamda = g, lamda

    def _prox(self, alpha: float, x: np.ndarray) -> np.ndarray:
        return self.g.shrink(torch.from_numpy(x), alpha * self.lamda).numpy()


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("method", [CgSense(), *SPARSE], ids=lambda m: m.name)
def test_sigpys_algorithms_find_the_same_minimum(method: Any, lines: bool) -> None:
    y, op = problem(lines=lines)
    linop, array, quiet = op.to_sigpy(), y.numpy(), {"show_pbar": False, "max_iter": 400}
    if isinstance(method, CgSense):
        found = sigpy.app.LinearLeastSquares(linop, array, lamda=method.lamda, tol=1e-9, **quiet).run()
    else:
        g: Sparsity = method.regulariser(SHAPE).to(torch.complex64, "cpu")
        lamda = method.lamda * float(op.adjoint(y).abs().max())
        coefficients = tuple(g.forward(torch.zeros(SHAPE, dtype=torch.complex64)).shape)
        transform = SigpyTransform(coefficients, SHAPE, g.forward, g.adjoint)
        options = {"G": transform, "proxg": SigpyShrinkage(coefficients, g, lamda), "rho": 0.05, "max_cg_iter": 5}
        found = sigpy.app.LinearLeastSquares(linop, array, solver="ADMM", **options, **quiet).run()
    theirs = objective(method, torch.from_numpy(found), y, op)
    assert objective(method, method(y, op), y, op) == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("lamda", [3e-4, 3e-3, 3e-2])
@pytest.mark.parametrize("n_coils", [1, 3])
@pytest.mark.parametrize("method", [CgSense(), *SPARSE], ids=lambda m: m.name)
def test_defaults_are_converged(method: Any, n_coils: int, lamda: float) -> None:
    y, op = problem(n_coils=n_coils, lines=n_coils == 3)
    method = replace(method, lamda=lamda)
    longer = replace(method, iterations=10 * method.iterations, tolerance=0.0)
    short, long = (objective(m, m(y, op), y, op) for m in (method, longer))
    assert short < long * (1 + 1e-3)


@pytest.mark.parametrize("factor", [1e-18, 1e-6, 1e6])
@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_positively_homogeneous(method: Any, factor: float) -> None:
    y, op = problem()
    image, scaled = method(y, op), method(factor * y, replace(op, noise_std=factor * op.noise_std))
    assert torch.allclose(scaled / factor, image, rtol=1e-3, atol=1e-4 * float(image.abs().max()))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("n_coils", [1, 3])
@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_no_plane_depends_on_the_others_of_its_batch(method: Any, lines: bool, n_coils: int, dtype: torch.dtype) -> None:
    # An easy plane, an empty one, a noisy one that iterates on, and one that is 1e-6 as large: bit for bit as if alone.
    y, op = problem(SHAPE, n_coils, 0.003, lines)
    noisy, _ = problem(SHAPE, n_coils, 0.3, lines)
    op = replace(op, maps=op.maps.to(dtype))
    batch = torch.stack([y, torch.zeros_like(y), noisy, 1e-6 * y]).to(dtype)
    images = method(batch, op)
    assert images.shape == (4, *SHAPE)
    assert images.dtype == dtype
    assert (images[1] == 0).all()
    for plane, image in zip(batch, images, strict=True):
        assert torch.equal(method(plane, op), image)
    assert torch.equal(method(batch.reshape(2, 2, *y.shape), op), images.reshape(2, 2, *SHAPE))


@pytest.mark.parametrize("lines", [True, False])
@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_odd_planes_depend_on_their_batch_by_rounding_alone(method: Any, lines: bool) -> None:
    # The last elements of an array whose length is no multiple of the vector length are computed otherwise.
    y, op = problem((23, 19), lines=lines)
    noisy, _ = problem((23, 19), noise=0.3, lines=lines)
    batch = torch.stack([y, noisy, y.conj()])
    for plane, image in zip(batch, method(batch, op), strict=True):
        assert (method(plane, op) - image).abs().max() < 1e-5 * image.abs().max()


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_every_plane_has_its_own_maps_and_mask(method: Any) -> None:
    (y, op), (other_y, other_op) = problem(), problem(noise=0.05, lines=False)
    other_op = replace(other_op, maps=other_op.maps.flip(0))
    whole = replace(op, mask=op.mask.expand(SHAPE))
    both = Op(torch.stack([op.maps, other_op.maps]), torch.stack([whole.mask, other_op.mask]).unsqueeze(1))
    images = method(torch.stack([y, other_y]), both)
    assert torch.equal(images[0], method(y, whole))
    assert torch.equal(images[1], method(other_y, other_op))


@pytest.mark.parametrize("n_averages", [False, True])
def test_columns_one_by_one_and_the_plane_at_once_agree(n_averages: bool) -> None:
    # A mask of whole lines is solved column by column, the same mask given point by point is not.
    y, op = problem()
    if n_averages:
        op = replace(op, n_averages=op.mask.int() * torch.arange(1, SHAPE[0] + 1).remainder(3).add(1)[:, None])
    maps = op.maps.clone()
    maps[:, :, :4] = 0
    op = replace(op, maps=maps)
    counts = None if op.n_averages is None else op.n_averages.expand(SHAPE)
    whole = replace(op, mask=op.mask.expand(SHAPE), n_averages=counts)
    by_columns, at_once = (CgSense(tolerance=1e-7)(y, o) for o in (op, whole))
    assert torch.allclose(by_columns, at_once, atol=1e-4)


@pytest.mark.parametrize("method", ALL[1:], ids=lambda m: m.name)
def test_chunks_change_nothing(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from kspace import normal_equations

    y, op = problem()
    batch = torch.stack([y, 2 * y, y.conj(), y.flip(0)])
    together = method(batch, op)
    for name in ("CPU_CHUNK", "CPU_BATCH"):
        monkeypatch.setattr(normal_equations, name, y.numel() + 1)
    assert torch.equal(method(batch, op), together)


@pytest.mark.parametrize("method", ALL[1:], ids=lambda m: m.name)
def test_more_averages_everywhere_change_nothing(method: Any) -> None:
    y, op = problem()
    assert torch.allclose(method(y, replace(op, n_averages=4 * op.mask.int())), method(y, op), atol=1e-5)


@pytest.mark.parametrize("method", ALL[1:], ids=lambda m: m.name)
def test_weights_are_repeated_measurements(method: Any) -> None:
    # A line measured twice with mean m is a line measured once by each of two sets of coils.
    y, op = problem()
    twice = op.mask & (torch.arange(SHAPE[0])[:, None] % 2 == 0)
    averaged = replace(op, n_averages=op.mask.int() + twice.int())
    doubled = Op(torch.cat([op.maps, op.maps]), torch.cat([op.mask.expand(3, *SHAPE), twice.expand(3, *SHAPE)]))
    # The doubled problem has the same A^H W y and A^H W A, but its own largest weight, 1, where the averaged has 2.
    lamda = method.lamda * (2 if isinstance(method, CgSense) else 1)
    expected = replace(method, lamda=lamda, tolerance=1e-6)(torch.cat([y, y]), doubled)
    image = replace(method, tolerance=1e-6)(y, averaged)
    assert torch.linalg.vector_norm(image - expected) < 3e-3 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_what_was_not_sampled_does_not_matter(method: Any) -> None:
    y, op = problem()
    garbage = torch.where(op.mask, y, torch.full_like(y, 1e3))
    assert torch.allclose(method(garbage, op), method(y, op), atol=1e-6)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_a_sampled_zero_is_data_not_a_gap(method: Any) -> None:
    # SigPy's apps take the non-zero samples for the mask, and would so ignore a measured zero.
    y, op = problem(noise=0.0)
    y = y.clone()
    y[:, SHAPE[0] // 2] = 0
    gap = op.mask.clone()
    gap[SHAPE[0] // 2] = False
    if not isinstance(method, ZeroFilled):
        assert (method(y, op) - method(y, replace(op, mask=gap))).abs().max() > 0.05


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_zero_outside_the_support_and_for_an_empty_slice(method: Any) -> None:
    y, op = problem()
    maps = op.maps.clone()
    maps[:, :, :6] = 0
    image = method(y, replace(op, maps=maps))
    assert (image[:, :6] == 0).all()
    assert image[:, 6:].abs().max() > 0
    empty = method(torch.zeros_like(y), op)
    assert (empty == 0).all()
    assert (method(y, replace(op, maps=torch.zeros_like(maps))) == 0).all()


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_odd_sizes_and_the_global_generator(method: Any) -> None:
    y, op = problem((23, 19))
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global generator must not move
    image = method(y.requires_grad_(), op)
    assert image.shape == (23, 19)
    assert image.dtype == torch.complex64
    assert torch.isfinite(torch.view_as_real(image)).all()
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_make_knows_every_method_and_refuses_the_rest() -> None:
    assert [make(name) for name in classical.METHODS] == [ZeroFilled(), CgSense(), Grappa(), L1Wavelet(), TotalVariation()]
    assert make("tv", lamda=0.1) == TotalVariation(lamda=0.1)
    with pytest.raises(InputError, match="unknown method 'spirit'; choose from zero-filled, sense, grappa, l1-wavelet, tv"):
        make("spirit")
    with pytest.raises(InputError, match="'rss' is a magnitude"):
        make("rss")
    with pytest.raises(InputError, match="'sense' has no option 'wavelet'; its options are lamda, iterations, tolerance"):
        make("sense", wavelet="db2")
    with pytest.raises(InputError, match="'zero-filled' has no option 'lamda'; it has none"):
        make("zero-filled", lamda=1.0)
    for bad in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="lamda must be finite and positive"):
            make("tv", lamda=bad)
    with pytest.raises(InputError, match="lamda must be finite and at least 0"):
        make("sense", lamda=-1e-3)
    with pytest.raises(InputError, match="iterations must be at least 1"):
        make("sense", iterations=0)
    with pytest.raises(InputError, match="tolerance must be at least 0"):
        make("tv", tolerance=-1.0)
    with pytest.raises(InputError, match=r"'bior2\.2' is not an orthogonal wavelet"):
        make("l1-wavelet", wavelet="bior2.2")
    with pytest.raises(InputError, match="levels must be at least 1"):
        make("l1-wavelet", levels=0)


def test_k_space_that_does_not_fit_is_refused() -> None:
    y, op = problem()
    with pytest.raises(ValueError, match="does not fit maps"):
        TotalVariation()(y[:2], op)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db3"])
def test_wavelet_norm_is_the_mean_over_all_shifts_of_the_decimated_one(wavelet: str) -> None:
    n, levels = 20, 2
    x = torch.randn(n, n, dtype=torch.complex128)
    total = 0.0
    for dy in range(n):
        for dx in range(n):
            shifted = np.roll(x.numpy(), (dy, dx), (0, 1))
            for details in pywt.wavedec2(shifted, wavelet, mode="periodization", level=levels)[1:]:
                total += sum(np.abs(d).sum() for d in details)
    g = Wavelet((n, n), wavelet, levels)
    assert float(g.norm(g.forward(x))) == pytest.approx(total / n**2, rel=1e-5)


@pytest.mark.parametrize("shape", [(16, 12), (15, 13), (1, 7)])
@pytest.mark.parametrize("kind", [Gradient, Wavelet])
def test_regularisers_are_consistent(kind: type, shape: tuple[int, int]) -> None:
    g: Sparsity = kind(shape).to(torch.complex64, "cpu")
    x = torch.randn(shape, dtype=torch.complex64)
    v = torch.randn(g.forward(x).shape, dtype=torch.complex64)
    left, right = torch.vdot(g.forward(x).ravel(), v.ravel()), torch.vdot(x.ravel(), g.adjoint(v).ravel())
    assert torch.allclose(left, right, rtol=1e-4, atol=1e-4)
    assert torch.allclose(g.adjoint(g.forward(x)), g.gram(x), atol=1e-5)
    spectrum = torch.fft.fftn(g.gram(x)) / torch.fft.fftn(x)
    assert torch.allclose(spectrum, g.gram_eigenvalues.to(spectrum.dtype), atol=1e-4)
    # The proximal operator: moving from the shrunk point in any direction raises 1/2 |z - v|^2 + step r(z).
    step = 0.3
    z = g.shrink(v, step)

    def value(z: Tensor) -> float:
        return 0.5 * float((z - v).abs().square().sum()) + step * float(g.norm(z))

    for _ in range(20):
        assert value(z + 1e-2 * torch.randn_like(z)) > value(z)


def test_gradient_equals_sigpys() -> None:
    x = torch.randn(9, 8, dtype=torch.complex64)
    assert np.allclose(Gradient((9, 8)).forward(x).numpy(), sigpy.linop.FiniteDifference((9, 8))(x.numpy()), atol=1e-6)


@pytest.mark.parametrize("lines", [True, False])
def test_the_circulant_is_the_nearest_to_the_normal_operator(lines: bool) -> None:
    y, op = problem((8, 6), lines=lines)
    plane = solvers.Planes.of(y[None], op.flattened((1,)))
    n = 48
    identity = torch.eye(n, dtype=torch.complex64).reshape(n, 8, 6)
    matrix = plane.op.gram(plane.weights)(identity).reshape(n, n).T
    fourier = torch.fft.fft2(identity, norm="ortho").reshape(n, n).T
    # The nearest circulant in the Frobenius norm has the diagonal of F M F^H for its eigenvalues.
    expected = torch.diagonal(fourier @ matrix @ fourier.mH).real.reshape(8, 6)
    assert torch.allclose(plane.circulant(), expected, atol=1e-5)


def test_a_method_on_a_device_gives_the_image_where_the_samples_are() -> None:
    y, op = problem()
    moved: list[str] = []

    def method(samples: Tensor, there: Op) -> Tensor:
        moved.extend((samples.device.type, there.maps.device.type))
        return samples[0].to("cpu") if samples.device.type != "meta" else torch.empty_like(samples[0])

    assert OnDevice(method, torch.device("meta"))(y.to("meta"), op).device.type == "meta"
    assert moved == ["meta", "meta"]
    assert torch.equal(OnDevice(CgSense(), torch.device("cpu"))(y, op), CgSense()(y, op))


@pytest.mark.gpu
@pytest.mark.parametrize("method", ALL, ids=lambda m: m.name)
def test_a_gpu_gives_the_same_image(method: Any) -> None:
    y, op = problem()
    image, there = method(y, op), OnDevice(method, torch.device("cuda"))(y, op)
    assert there.device == y.device
    assert torch.allclose(there, image, atol=1e-3 * float(image.abs().max()))
