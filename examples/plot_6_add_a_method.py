"""
Add a method
============

A classical reconstruction of your own, in twenty lines, that `Scan.reconstruct` knows by its name.
"""

# %%
# A method is a frozen dataclass, called with k-space and forward model. This one is projected Landweber iteration:
# gradient steps of :math:`\\|A x - y\\|^2`, stopped early, which regularises (Landweber 1951, doi:10.2307/2372313).
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

import recon
from kspace import Sense
from recon.methods import classical


@dataclass(frozen=True)
class Landweber:
    """Gradient descent from zero, stopped after `iterations` steps.

    Attributes
    ----------
    lamda
        Length of a step; at most 1 for normalised coil maps.
    iterations
        Number of steps.
    """

    name: ClassVar[str] = "landweber"
    lamda: float = 1.0
    iterations: int = 30

    def __call__(self, y: Tensor, op: Sense) -> Tensor:
        """Image, complex ``(*batch y x)``, from k-space ``(*batch coil ky kx)``."""
        image = op.adjoint(y)
        for _ in range(self.iterations - 1):
            image = image + self.lamda * op.adjoint(y - op.forward(image))
        return image


if "landweber" not in classical.METHODS:
    classical.register(Landweber)

# %%
# Reconstruct with it: coil maps, whitening, geometry and export are those of every other method.
path = recon.example_scan("added.h5", matrix=128, n_slices=1, acceleration=3, force=True)
with recon.open(path) as scan:
    images = {method: scan.reconstruct(method)[0] for method in ("zero-filled", "landweber", "sense")}
    y, op = scan.kspace().data, scan.operator()
Path(path).unlink()

# %%
# On one grey scale. The iteration approaches the solution of SENSE from the zero-filled image.
top = float(np.percentile(recon.upright(images["sense"]), 99.5))
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
for ax, (method, image) in zip(axes, images.items(), strict=True):
    ax.imshow(recon.upright(image), cmap="gray", vmin=0, vmax=top)
    ax.set_title(method)
    ax.axis("off")
plt.show()

steps = [1, 3, 10, 30, 100]
target = classical.CgSense(lamda=1e-6)(y, op)
distances = [float((Landweber(iterations=n)(y, op) - target).norm() / target.norm()) for n in steps]
figure, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
ax.loglog(steps, distances, "o-")
ax.set(xlabel="iterations", ylabel="relative distance to SENSE")
plt.show()
