"""
Masks and operators against SigPy
=================================

Draw undersampling masks, build the forward model of a multi-coil scan, and hold it against SigPy's.
"""

# %%
# A mask is a family, an acceleration and a seed. It is drawn exactly: R = 4 means that a quarter of the samples is kept.
import matplotlib.pyplot as plt
import numpy as np
import sigpy
import sigpy.mri
import torch

import recon
from kspace import MaskSpec, Sense
from kspace.masks import acceleration

shape = 128, 128
specs = ["equispaced1d:4", "random1d:4", "poisson2d:4", "radial:4"]
masks = {spec: MaskSpec.parse(spec).draw(shape) for spec in specs}
figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained")
for ax, (spec, mask) in zip(axes, masks.items(), strict=True):
    ax.imshow(mask.expand(shape).numpy(), cmap="gray", interpolation="nearest")
    ax.set(title=f"{spec}: R = {acceleration(mask, shape):.2f}", xlabel="kx (readout)", ylabel="ky", xticks=[], yticks=[])
plt.show()

# %%
# The operator :math:`A = M F S` of a scan: its coil maps :math:`S`, the orthonormal Fourier transform :math:`F`, its mask
# :math:`M`. Data and maps come from a fully sampled scan of the phantom.
path = recon.example_scan("full.h5", matrix=128, n_slices=1, acceleration=1, force=True)
with recon.open(path) as scan:
    y, full, geometry = scan.kspace().data, scan.operator(), scan.geometry
path.unlink()
op = Sense(full.maps, masks["poisson2d:4"])
undersampled = y * op.mask

# %%
# SigPy's operator of the same scan. The two agree to rounding, forward and adjoint, and ours is adjoint to itself.
theirs = sigpy.mri.linop.Sense(op.maps.numpy(), weights=op.mask.expand(shape).numpy().astype(np.float32))
rng = torch.Generator().manual_seed(0)
x = torch.randn(shape, dtype=torch.complex64, generator=rng)


def difference(ours, other):
    """Norm of the difference, relative."""
    return float(torch.linalg.vector_norm(ours - torch.from_numpy(other)) / torch.linalg.vector_norm(ours))


forward_difference = difference(op.forward(x), theirs(x.numpy()))
adjoint_difference = difference(op.adjoint(undersampled), theirs.H(undersampled.numpy()))
left = torch.vdot(op.forward(x).flatten(), undersampled.flatten())
right = torch.vdot(x.flatten(), op.adjoint(undersampled).flatten())
adjointness = float(abs(left - right) / abs(left))
print(f"forward {forward_difference:.1e}, adjoint {adjoint_difference:.1e}, <Ax, y> against <x, A^H y> {adjointness:.1e}")

# %%
# SENSE of the samples that are left, with ours and with SigPy's solver, both without regularisation that shows: the same image.
from recon.methods.classical import CgSense

ours = CgSense(lamda=1e-3)(undersampled, op)
solver = sigpy.mri.app.SenseRecon(
    undersampled.numpy(),
    op.maps.numpy(),
    lamda=1e-3,
    weights=op.mask.expand(shape).numpy().astype(np.float32),
    max_iter=200,
    show_pbar=False,
)
peer = solver.run()
sense_difference = difference(ours, peer)
print(f"SENSE: {sense_difference:.1e}")

from recon.output.png import view_of

turn = view_of(geometry).apply
panels = {
    "fully sampled": full.adjoint(y),
    "zero-filled": op.adjoint(undersampled),
    "SENSE (recon)": ours,
    "SENSE (SigPy)": torch.from_numpy(peer),
}
top = float(np.percentile(panels["fully sampled"].abs(), 99.8))
figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained")
for ax, (name, image) in zip(axes, panels.items(), strict=True):
    ax.imshow(turn(image.abs().numpy()), cmap="gray", vmin=0, vmax=top)
    ax.set_title(name)
    ax.axis("off")
figure.suptitle("poisson2d:4, eight coils, one grey scale")
plt.show()
