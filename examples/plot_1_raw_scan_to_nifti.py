"""
Raw scan to NIfTI
=================

Open a raw file, look at what it holds, reconstruct it, and write NIfTI images that lie where the patient lay.
"""

# %%
# The package simulates a scan of a head phantom: three oblique slices, eight coils, a noise scan, threefold undersampling with
# embedded calibration lines, and twofold readout oversampling. ``scan.h5`` is an ordinary ISMRMRD file; put yours in its place.
from pathlib import Path

import matplotlib.pyplot as plt
import nibabel
import numpy as np

import recon

path = recon.example_scan("scan.h5", matrix=160, force=True)
scan = recon.open(path)
print(scan.describe())

# %%
# Reconstruct it. Coil maps are estimated from the calibration lines, the samples whitened with the noise scan; nothing is
# written yet.
images = scan.reconstruct(method="sense")
images

# %%
# Images are complex, ``(y x)`` for a two-dimensional scan. `recon.upright` gives the magnitude as a radiologist sees it.
print(images[0].numpy().shape, images[0].numpy().dtype)
top = max(np.percentile(recon.upright(image), 99.8) for image in images)
figure, axes = plt.subplots(1, len(images), figsize=(9, 3.4), layout="constrained")
for ax, image in zip(axes, images, strict=True):
    ax.imshow(recon.upright(image), cmap="gray", vmin=0, vmax=top)
    ax.set_title(f"{image.header.index.name}, {1e3 * image.geometry.position_m[2]:.0f} mm")
    ax.axis("off")
figure.suptitle("SENSE, R = 3")
plt.show()

# %%
# Save them. All files appear together, with a JSON record of method, parameters, versions and the raw file's checksum; after a
# failure there are none.
written = images.save("out", formats=("nifti", "dicom"), force=True)
print([p.name for p in written])

# %%
# The affine holds the position and the tilt of the slices, in millimetres of RAS: converters and viewers need no more.
(nifti,) = [nibabel.load(p) for p in written if p.name.endswith(".nii.gz")]
print(nifti.shape, nibabel.aff2axcodes(nifti.affine))
print(np.round(nifti.affine, 2))
scan.close()
Path(path).unlink()
