"""
Compare methods
===============

One scan, one mask, four methods, one truth. For tables with intervals and corrected tests over whole data sets, see
``recon compare`` in COMPARE.
"""

# %%
# Simulate a threefold undersampled scan, whose ground truth is known without noise, and reconstruct it by every method.
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import recon
from kspace.simulation.measurement import write_scan
from recon.commands.demo import head_scan, truth_of
from recon.metrics.image import psnr

acquisition = head_scan(matrix=128, n_slices=1, n_coils=8, factor=4)
path = Path("compared.h5")
write_scan(acquisition, path)
truth = truth_of(acquisition, 0)
inside = truth > 0.1 * truth.max()

images, decibels = {}, {}
with recon.open(path) as scan, warnings.catch_warnings():
    warnings.simplefilter("ignore", recon.ReconWarning)  # what each method says of this scan is in images.warnings
    for method in ("zero-filled", "sense", "l1-wavelet", "gancs"):
        result = scan.reconstruct(method)
        images[method] = result[0]
        decibels[method] = psnr(truth, np.abs(result[0].numpy()), inside)
        print(f"{method:<12} {decibels[method]:.1f} dB", *result.warnings, sep="  ")
path.unlink()

# %%
# Images above, five times the errors below, all on the grey scale of the truth.
from recon.output.png import view_of

turn = view_of(images["sense"].geometry).apply
top = float(np.percentile(truth[inside], 99.5))
figure, axes = plt.subplots(2, 5, figsize=(11, 4.8), layout="constrained")
axes[0, 0].imshow(turn(truth.astype(np.float32)), cmap="gray", vmin=0, vmax=top)
axes[0, 0].set_title("noise-free ground truth")
for column, (method, image) in enumerate(images.items(), start=1):
    error = 5 * np.abs(np.abs(image.numpy()) - truth).astype(np.float32)
    axes[0, column].imshow(recon.upright(image), cmap="gray", vmin=0, vmax=top)
    axes[0, column].set_title(f"{method}, {decibels[method]:.1f} dB")
    axes[1, column].imshow(turn(error), cmap="gray", vmin=0, vmax=top)
    axes[1, column].set_title("5 x |error|")
for ax in axes.flat:
    ax.axis("off")
figure.suptitle("Analytic phantom, eight coils, R = 4. PSNR on the object. Not for diagnostic use.")
plt.show()
