"""Adaptation of a generator to an encoding of a raw file, put on record and saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from kspace.container import ImageIndex
from kspace.errors import InputError
from kspace.operators import ForwardModel, Sense, on_grid
from recon.methods.choose import Method
from recon.methods.classical import Reconstructor
from recon.run.log import Log
from recon.run.options import RunOptions

if TYPE_CHECKING:
    from recon.methods.generator import GeneratorReconstructor

Load = Callable[[ImageIndex], tuple[Tensor, ForwardModel]]


def check_adaptation(method: Method, options: RunOptions) -> None:
    """Refuse an adaptation of what cannot be adapted.

    Raises
    ------
    InputError
        If the method is no generator of complex images, or a file of ``options.save_weights`` exists without a state.
    """
    if options.adapt is None:
        return
    if method.generator is None:
        raise InputError(f"{method.name} is no generator", "--adapt", "leave it out")
    if method.generator.generator.fitted:
        raise InputError(f"{method.name} is fitted to each scan anyway", "--adapt", "leave it out")
    if not method.generator.generator.homogeneous:
        raise InputError(f"{method.name} is a published preset, which expects magnitudes", "--adapt", "leave it out")
    from recon.methods.adaptation.state import state_path

    path = options.save_weights
    if path is not None and path.exists() and not state_path(path).exists() and not options.force:
        raise InputError("the file exists", path, "choose another name, or give --force")


def adapted(method: Method, indices: Sequence[ImageIndex], load: Load, options: RunOptions, log: Log) -> Method:
    """The method with its generator adapted to a volume; itself without ``options.adapt``.

    Parameters
    ----------
    method
        A generator, refined or not.
    indices
        Of all images of the encoding that are reconstructed.
    load
        Prepared k-space of an image and its operator.
    options
        How.
    log
        Takes recipe, steps and errors.
    """
    if options.adapt is None or method.generator is None:
        return method
    from recon.methods.adaptation.adapt import SLICES, Recipe, State, adapt
    from recon.methods.adaptation.state import digest_of, read_state, state_path, write_state

    n = min(SLICES, len(indices))
    chosen = [indices[int((i + 0.5) * len(indices) / n)] for i in range(n)]
    cases = [case for index in chosen for case in _planes_of(*load(index), SLICES // n)]
    recipe, path = Recipe(options.adapt, options.adapt_steps), options.save_weights
    digest = digest_of(cases, method.generator.sha256, recipe)
    begun = None
    if path is not None and state_path(path).exists() and not options.force:
        begun = read_state(state_path(path), digest)

    def keep(state: State) -> None:
        if path is not None:
            write_state(state_path(path), state, digest)

    with log.step("adaptation"):
        found = adapt(method.generator, cases, recipe, begun, keep=keep)
    about = {"from": [i.name for i in chosen], "parent_sha256": method.generator.sha256}
    log.refinement.append({**about, "says": found.says, **found.record()})
    if found.state is None:
        log.warn(found.says)
    network = found.network
    if path is not None and found.state is not None:
        from recon.methods import weights

        keep(found.state)
        card = network.card
        training = {**card.training, "adapted": {**about, **found.record()}}
        notes = f"{card.notes} Adapted to one scan: for this scan only.".strip()
        state = network.generator.state_dict()
        weights.write(path, state, replace(card, training=training, notes=notes), force=True)
    return replace(method, generator=network, reconstruct=_with(method, network))


def as_adapted(options: RunOptions, log: Log) -> RunOptions:
    """The options with the number of steps that were taken: those that repeat the images, whatever the time limit."""
    steps = next((one["steps"] for one in log.refinement if "recipe" in one and "steps" in one), None)
    return options if options.adapt is None or not isinstance(steps, int) else replace(options, adapt_steps=max(1, steps))


def _with(method: Method, network: GeneratorReconstructor) -> Reconstructor:
    """What reconstructs, with another generator."""
    from recon.methods.refine import RefinedGenerator
    from recon.methods.stack import Stack

    made = method.reconstruct
    if isinstance(made, Stack):
        return replace(made, network=network, unadapted=method.generator)
    return replace(made, network=network) if isinstance(made, RefinedGenerator) else network


def _planes_of(y: Tensor, op: ForwardModel, most: int) -> list[tuple[Tensor, Sense]]:
    """Planes ``(coil ky kx)`` of an image with their operators, at most `most`, spread over all."""
    from recon.methods.stack import planes_of

    planes = [(one, on_grid(own, "--adapt", "leave it out")) for one, own in planes_of(y, op)]
    n = min(max(1, most), len(planes))
    return [planes[int((i + 0.5) * len(planes) / n)] for i in range(n)]
