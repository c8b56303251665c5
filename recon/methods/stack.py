"""Stacking: the convex combination of several reconstructions that predicts held-out samples of the scan best.

Acquired samples outside of the calibration area are held out in folds; every candidate reconstructs the rest and predicts them.
With the residuals ``e_c = A x_c - y`` at the held-out samples and their importance w (`held_out.Candidates.importance`), the
weights a minimise ``sum w |sum_c a_c e_c|^2`` over the simplex (stacked regressions: Breiman 1996, doi:10.1007/BF00117832). On
the simplex the squared error of the combination is at most the weighted mean of those of its members, and usually below that of
the best.

Few held-out samples give poor weights. They are shrunk towards those of a simulated twin of the scan, which has the mask, coil
maps and noise of the scan and an object whose truth is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from kspace.linear_operators import with_tensors
from kspace.operators import ForwardModel
from recon.methods.classical import L1Wavelet, Reconstructor, flattened
from recon.methods.generator import GeneratorReconstructor
from recon.methods.held_out import Candidates, noise_variance, together, without
from recon.methods.refine import Residual, relative_noise
from recon.methods.twin import twin

FRACTION = 0.12  # of the candidates for holding out, in each fold
FOLDS = 3
FEWEST = 20  # lines below which the prior decides alone
PRIOR_UNITS = 4.0  # held-out units that the prior weighs as much as
SLICES = 3  # of a volume, that its weights are made from
EVEN = 0.25  # share of equal weights in the prior: means of reconstructions are seldom much worse than any of them
LAMDAS = {"lines": 4e-3, "points": 1e-3, "readouts": 1e-3}  # least of L1-wavelet: missing lines leave stronger aliases
NOISE = 0.15  # its weight in standard deviations of the noise, where that is more
BLOCKS = 16  # units that the held-out points of a fold count as, for standard errors


@dataclass(frozen=True, eq=False)
class Evidence:
    """Squared errors of the candidates and of their mixtures.

    Attributes
    ----------
    products
        Real parts of ``sum w conj(e_i) e_j``, float64 ``(unit candidate candidate)``, one for each held-out unit.
    fold
        Of each unit, int64 ``(unit)``.
    size
        How many lines or points a unit holds.
    """

    products: Tensor
    fold: Tensor
    size: float = 1.0

    @property
    def total(self) -> Tensor:
        """The sum over the units, ``(candidate candidate)``."""
        return self.products.sum(0)

    def errors(self, weights: Tensor) -> Tensor:
        """Squared error of a mixture in each unit, ``(unit)``."""
        return torch.einsum("uij,i,j->u", self.products, weights, weights)


def simplex_minimum(q: Tensor) -> Tensor:
    """``argmin a^T q a`` with a >= 0 and sum 1, float64 ``(n)``, for a positive semidefinite ``(n n)``.

    The best over all subsets of members, each solved in closed form.
    """
    n, best, value = len(q), torch.zeros(len(q), dtype=torch.float64), math.inf
    ridge = 1e-9 * q.diagonal().max().clamp(min=1e-300) * torch.eye(n, dtype=torch.float64)
    for size in range(1, n + 1):
        for members in itertools.combinations(range(n), size):
            index = torch.tensor(members)
            part = torch.linalg.solve((q + ridge)[index][:, index], torch.ones(size, dtype=torch.float64))
            if not bool((part > 0).all()):
                continue
            a = torch.zeros(n, dtype=torch.float64).index_put_((index,), part / part.sum())
            if (error := float(a @ q @ a)) < value * (1 - 1e-12):
                best, value = a, error
    return best


def prior_weight(evidence: Evidence) -> float:
    """Weight of the prior beside held-out errors: `PRIOR_UNITS` over the effective number of units.

    A few strong units near the centre make most of the error, and count as few: ``(sum e)^2 / sum e^2`` (Kish 1965), times the
    points that a unit holds.
    """
    energy = evidence.products.diagonal(dim1=1, dim2=2).amin(1)
    effective = float(energy.sum() ** 2 / energy.square().sum().clamp(min=1e-300))
    return PRIOR_UNITS / max(effective * evidence.size, 1e-9)


def combine(evidence: Evidence | None, prior: Tensor) -> Tensor:
    """Weights ``(candidate,)``: those of the held-out errors, shrunk towards `prior`; without errors, the prior.

    Shrinking adds ``k d ||a - prior||^2`` with d the mean curvature of the held-out error over the simplex, so that
    k = `prior_weight` has no unit: at k = 1 both count alike.
    """
    if evidence is None:
        return prior
    q, n = evidence.total, len(prior)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    curvature = float((centring @ q @ centring).diagonal().sum()) / (n - 1)
    away = torch.eye(n, dtype=torch.float64) - prior  # rows: corners of the simplex as seen from the prior
    return simplex_minimum(q + prior_weight(evidence) * curvature * away @ away.T)


def gain(evidence: Evidence, prior: Tensor, few: bool, best: int) -> tuple[float, float]:
    """By how much a stack predicts better than candidate `best`, relative to that one's error, and the standard error.

    `prior` are weights ``(candidate,)``. Each fold is predicted with weights from the others: a stack is not judged by what
    chose it.
    """
    differences = torch.zeros(len(evidence.fold), dtype=torch.float64)
    for fold in evidence.fold.unique():
        others, here = evidence.fold != fold, evidence.fold == fold
        rest = (
            None if few or not bool(others.any()) else Evidence(evidence.products[others], evidence.fold[others], evidence.size)
        )
        a = combine(rest, prior)
        one = Evidence(evidence.products[here], evidence.fold[here])
        differences[here] = one.products[:, best, best] - one.errors(a)
    n, error = len(differences), float(evidence.products[:, best, best].sum())
    spread = float(differences.std()) * math.sqrt(n) if n > 1 else math.inf
    return float(differences.sum()) / max(error, 1e-300), spread / max(error, 1e-300)


@dataclass(frozen=True)
class Fit:
    """How a stack was chosen, for the record.

    Attributes
    ----------
    names
        Of the candidates; the first is the classical one.
    lamda
        Regularisation weight of the classical one.
    weights
        Delivered, in the same order, sum 1.
    proposed, prior
        Weights before the comparison with the classical candidate, and those that they were shrunk towards: half the twin's,
        half equal ones.
    errors
        Weighted squared error of each candidate at the held-out samples, relative to that of the first; empty where nothing
        could be held out.
    gain, gain_error
        Of the proposed stack over the classical candidate at samples that did not choose it, relative to the error of that
        candidate, and its standard error over the held-out units; None where nothing could be held out.
    unit, n_candidates, n_held_out, folds, slices
        What was held out: ``lines`` or ``points``, of how many, in how many folds of how many slices.
    why
        The decision in words.
    companion, energy
        Weighted squared errors of `Stack.companion`, and of predicting zero, relative to that of the first candidate; None
        where there is no companion, or nothing could be held out.
    """

    names: tuple[str, ...]
    lamda: float
    weights: tuple[float, ...]
    proposed: tuple[float, ...]
    prior: tuple[float, ...]
    errors: tuple[float, ...]
    gain: float | None
    gain_error: float | None
    unit: str
    n_candidates: int
    n_held_out: int
    folds: int
    slices: int
    why: str
    companion: float | None = None
    energy: float | None = None

    @property
    def says(self) -> str:
        """One sentence for people and for DICOM's DerivationDescription."""
        parts = [f"{w:.2f} {name}" for name, w in zip(self.names, self.weights, strict=True) if w > 0.005]
        return f"stack of {' + '.join(parts)} ({self.why})"

    def record(self) -> dict[str, object]:
        """For the JSON record."""
        named = {
            key: dict(zip(self.names, getattr(self, key), strict=False)) for key in ("weights", "proposed", "prior", "errors")
        }
        rest: tuple[str, ...] = ("lamda", "gain", "gain_error", "unit", "n_candidates", "n_held_out", "folds", "slices", "why")
        rest += ("companion", "energy")
        return {**named, **{key: getattr(self, key) for key in rest}}


@dataclass(frozen=True, eq=False)
class Held:
    """One slice with everything that is held out of it.

    Attributes
    ----------
    candidates
        What may be held out.
    masks
        Bool ``(ky kx|1)`` or ``(readout 1)``, one for each fold.
    """

    candidates: Candidates
    masks: list[Tensor]

    @classmethod
    def of(cls, op: ForwardModel, seed: int) -> Held:
        """The folds of a plane with operator `op`."""
        found = Candidates.of_model(op)
        n_folds = min(FOLDS, found.n)
        return cls(found, found.draw(n_folds, FRACTION, seed) if n_folds else [])

    def evidence(self, residuals: Sequence[Tensor]) -> Evidence | None:
        """Products of the residuals ``(candidate coil ky kx)`` of each fold."""
        products, folds = [], []
        importance = self.candidates.importance()
        for number, (held, e) in enumerate(zip(self.masks, residuals, strict=True)):
            for unit in self._units(held):
                w = (importance * unit).expand(e.shape[-2:]).to(e.device)
                where = w > 0
                chosen = (e[..., where] * w[where].sqrt()).to(torch.complex128).flatten(1)
                products.append((chosen.conj() @ chosen.T).real.cpu())
                folds.append(number)
        size = sum(int(held.sum()) for held in self.masks) / max(len(products), 1)
        return Evidence(torch.stack(products), torch.tensor(folds), size) if products else None

    def _units(self, held: Tensor) -> list[Tensor]:
        """Lines or readouts, or `BLOCKS` interleaved sets of points."""
        places = held.nonzero()
        places = places[self.candidates.distance()[held].argsort(stable=True)]
        n = min(BLOCKS, len(places)) if self.candidates.unit == "points" else len(places)
        units = []
        for i in range(n):
            unit = torch.zeros_like(held)
            unit[places[i::n, 0], places[i::n, 1]] = True
            units.append(unit)
        return units


@dataclass(frozen=True, eq=False)
class Stack:
    """Stack of a classical image, a generator's and its refinement, called ``(y, op) -> image``.

    Weights are made once for a volume (`fitted`); called without, they are made from the planes of the call. Uses acquired
    samples only; positively homogeneous; deterministic.

    Attributes
    ----------
    network
        The generator.
    classical
        What the stack is measured against, and falls back to; its weight is that of `LAMDAS`, or `NOISE` standard
        deviations of the noise where that is more.
    residual
        Residual refinement of the generator's image.
    seed
        Of the folds and of the twin.
    quick
        Iterations of the classical method, and of the residual, for a fold: a comparison needs no convergence.
    companion
        A classical method whose held-out error is measured beside those of the candidates; None: none.
    unadapted
        The generator before it was adapted to the scan, whose held-out errors give the weights: the adapted one has seen those
        samples. None: `network`.
    fit
        Weights and how they were chosen; None: not yet.
    """

    network: GeneratorReconstructor
    classical: L1Wavelet = field(default_factory=L1Wavelet)
    residual: Residual = field(default_factory=Residual)
    seed: int = 0
    quick: tuple[int, int] = (12, 8)
    companion: Reconstructor | None = None
    unadapted: GeneratorReconstructor | None = None
    fit: Fit | None = None

    @property
    def names(self) -> tuple[str, str, str]:
        """Of the candidates."""
        return self.classical.name, self.network.name, f"{self.network.name}+residual"

    def __call__(self, y: Tensor, op: ForwardModel) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``."""
        y = torch.where(op.mask, y, 0)
        fit = self.fit or self.fitted([(y, op)]).fit
        assert fit is not None
        image = y.new_zeros((*y.shape[:-3], *op.shape))
        _, generated, refined = fit.weights
        if fit.weights[0] > 0:
            image = image + fit.weights[0] * replace(self.classical, lamda=fit.lamda)(y, op)
        if generated + refined > 0:
            network = self.network(y, op)
            image = image + generated * network
            if refined > 0:
                image = image + refined * self.residual(network, y, op)
        return image

    def fitted(self, cases: Sequence[tuple[Tensor, ForwardModel]]) -> Stack:
        """The stack with weights for a volume, from a few of its slices.

        Parameters
        ----------
        cases
            k-space ``(*batch coil ky kx)`` and operator of each; at most `SLICES` planes, spread over all, are looked at.
        """
        planes = [plane for y, op in cases for plane in planes_of(y, op)]
        chosen = [planes[int((i + 0.5) * len(planes) / SLICES)] for i in range(SLICES)] if len(planes) > SLICES else planes
        found, twins = [], torch.zeros(3, 3, dtype=torch.float64)
        n_held, held = 0, None
        noise = float(torch.cat([relative_noise(y, op) for y, op in chosen]).median()) if chosen else 0.0
        for number, (y, op) in enumerate(chosen):
            held = Held.of(op, self.seed)
            evidence, products = self._judge(torch.where(op.mask, y, 0), op, held, with_twin=number == 0, noise=noise)
            twins = twins + products
            if evidence is not None:
                found.append(replace(evidence, fold=evidence.fold + FOLDS * number))
                n_held += sum(int(mask.sum()) for mask in held.masks)
        assert held is not None, "a stack needs a plane"
        joined = _joined(found)
        return replace(self, fit=self._decide(joined, twins, held, n_held, len(chosen), noise))

    def _judge(self, y: Tensor, op: ForwardModel, held: Held, with_twin: bool, noise: float) -> tuple[Evidence | None, Tensor]:
        """Held-out products of one plane, and those of its twin (zero without); all reconstructed in one batch."""
        rests = [without(op, mask) for mask in held.masks]
        samples = [torch.where(rest.mask, y, 0) for rest in rests]
        truth = None
        if with_twin:
            measured, truth = twin(y, op, noise_variance(y, op), self.seed)
            samples = [*samples, measured]
        ops = [*rests, op] if with_twin else rests
        images = self._candidates(torch.stack(samples), together(ops), _weight(held.candidates.unit, noise))
        residuals = [op.forward(images[i]) - y for i in range(len(rests))]
        if self.companion is not None and rests:
            beside = [self.companion(one, rest) for one, rest in zip(samples, rests, strict=False)]
            # Two more rows: the companion, and the prediction of zero.
            residuals = [torch.cat([e, torch.stack([op.forward(x) - y, -y])]) for e, x in zip(residuals, beside, strict=True)]
        products = torch.zeros(3, 3, dtype=torch.float64)
        if truth is not None:
            wrong = (images[-1] - truth)[:, op.support].to(torch.complex128)
            products = (wrong.conj() @ wrong.T).real.cpu()
        return held.evidence(residuals), products

    def _candidates(self, y: Tensor, op: ForwardModel, lamda: float) -> Tensor:
        """Quick images of all candidates: complex ``(plane candidate y x)``."""
        network = (self.unadapted or self.network)(y, op)
        classical = replace(self.classical, lamda=lamda, iterations=self.quick[0], tolerance=0.0)(y, op)
        refined = replace(self.residual, iterations=self.quick[1])(network, y, op)
        return torch.stack([classical, network, refined], -3)

    def _decide(self, evidence: Evidence | None, twins: Tensor, held: Held, n_held: int, n_slices: int, noise: float) -> Fit:
        unit, n = held.candidates.unit, held.candidates.n
        beside: tuple[float | None, float | None] = (None, None)
        if evidence is not None and self.companion is not None:
            totals = evidence.total.diagonal()
            if float(totals[0]) > 0:
                beside = float(totals[3] / totals[0]), float(totals[4] / totals[0])
            evidence = replace(evidence, products=evidence.products[:, :3, :3])
        few = unit != "points" and (n < FEWEST or held.candidates.regular)
        alone = EVEN / len(twins) + (1 - EVEN) * simplex_minimum(twins)
        proposed = combine(None if few else evidence, alone)

        def fit(weights: Tensor, why: str, errors: Tensor | None = None, measured: tuple[float, float] | None = None) -> Fit:
            return Fit(
                names=self.names,
                lamda=_weight(unit, noise),
                weights=tuple(weights.tolist()),
                proposed=tuple(proposed.tolist()),
                prior=tuple(alone.tolist()),
                errors=() if errors is None else tuple(errors.tolist()),
                gain=None if measured is None else measured[0],
                gain_error=None if measured is None else measured[1],
                unit=unit,
                n_candidates=n,
                n_held_out=n_held,
                folds=len(held.masks),
                slices=n_slices,
                why=why,
                companion=beside[0],
                energy=beside[1],
            )

        if evidence is None or float(evidence.total[0, 0]) == 0:
            return fit(alone, "weights of a simulated twin: nothing could be held out")
        mean, error = gain(evidence, alone, few, 0)
        why = f"held-out gain {mean:+.0%} +- {error:.0%} over {self.names[0]}, {n_held} {unit}"
        if few:
            reason = f"only {n} {unit} to hold out" if n < FEWEST else "regular gaps, which held-out lines would double"
            why = f"weights of a simulated twin, {reason}; {why}"
        errors = evidence.total.diagonal() / evidence.total[0, 0]
        if mean < -error:
            alone_classical = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
            return fit(alone_classical, f"{self.names[0]} alone: {why}", errors, (mean, error))
        return fit(proposed, why, errors, (mean, error))


def _weight(unit: str, noise: float) -> float:
    """Weight of L1-wavelet for held-out `unit`, with `noise` relative to max|A^H W y|."""
    return max(LAMDAS[unit], NOISE * noise)


def _joined(found: Sequence[Evidence]) -> Evidence | None:
    """The evidence of several slices."""
    if not found:
        return None
    size = sum(e.size for e in found) / len(found)
    return Evidence(torch.cat([e.products for e in found]), torch.cat([e.fold for e in found]), size)


def planes_of(y: Tensor, op: ForwardModel) -> list[tuple[Tensor, ForwardModel]]:
    """The planes ``(coil ky kx)`` of a batch ``(*batch coil ky kx)``, each with its operator."""
    samples, flat, _ = flattened(y, op)
    return [(one, with_tensors(flat.planes(slice(i, i + 1)), lambda x: x[0])) for i, one in enumerate(samples)]
