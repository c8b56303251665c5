"""
Train a small GAN on simulated data
===================================

From a folder of images to weights that ``recon`` reconstructs with. This is a toy: a small network, small images, few steps.
The page on training has the settings behind the bundled weights.
"""

# %%
# Images to learn from: slices of the head phantom at several heights and tilts. Any folder of PNG, DICOM, NIfTI or NumPy images
# serves; multi-coil scans are simulated from them while the training runs.
import csv
import shutil
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import recon
from recon.commands.demo import head_phantom
from recon.commands.train import train

folder = Path("images")
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir()
phantom = head_phantom()
for i in range(12):
    turn = np.deg2rad(np.linspace(-15, 15, 12)[i])
    y, x = np.meshgrid(np.linspace(-0.11, 0.11, 64), np.linspace(-0.11, 0.11, 64), indexing="ij")
    slice_image = phantom.image(x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), 0.004 * (i - 6))
    Image.fromarray(np.uint8(255 * np.clip(slice_image, 0, 1))).save(folder / f"slice{i:02d}.png")

# %%
# Train. The arguments are those of ``recon train`` on the command line. Every run leaves a folder with the resolved options, a
# log of every loss term, and the weights with a card that says what they were trained on.
run = Path("run")
train(
    f"--system dagan --generator.width 12 --generator.depth 3 --discriminator.width 8 --discriminator.depth 3 "
    f"--data.images {folder} --data.group_size 3 --data.val_fraction 0.2 "
    f"--data.matrix [64,64] --data.smooth true "
    f"--data.coils [4] --data.val_coils 4 --data.masks [random1d:3] --data.batch_size 2 --card.licence none "
    f"--trainer.max_steps 30 --trainer.val_check_interval 30 --trainer.check_val_every_n_epoch null "
    f"--trainer.log_every_n_steps 5 --trainer.enable_progress_bar false --trainer.accelerator cpu "
    f"-o {run} --force".split()
)
print(sorted(p.name for p in run.iterdir()))

# %%
# The loss terms, by name.
log = next((run / "csv").rglob("metrics.csv"))
rows = list(csv.DictReader(log.read_text().splitlines()))
figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name in [name for name in rows[0] if name.startswith(("g/", "d/"))]:
    points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
    ax.plot(*zip(*points, strict=True), label=name)
ax.set(xlabel="step", ylabel="loss term", yscale="symlog")
ax.legend()
plt.show()

# %%
# Reconstruct a scan with the weights: the network's own image, without the refinement that ``recon run`` adds by default.
path = recon.example_scan("toy.h5", matrix=64, n_slices=1, n_coils=4, acceleration=4, force=True)
with recon.open(path) as scan, warnings.catch_warnings():
    warnings.simplefilter("ignore", recon.ReconWarning)  # the toy knows little, and says so
    generated = scan.reconstruct(method="dagan", weights=run / "best.safetensors", refine="none")
    zero_filled = scan.reconstruct(method="zero-filled")
    sense = scan.reconstruct(method="sense")
path.unlink()
panels = {"zero-filled": zero_filled[0], "sense": sense[0], "dagan, 30 steps": generated[0]}
top = float(np.percentile(recon.upright(sense[0]), 99.5))
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
for ax, (name, image) in zip(axes, panels.items(), strict=True):
    ax.imshow(recon.upright(image), cmap="gray", vmin=0, vmax=top)
    ax.set_title(name)
    ax.axis("off")
plt.show()
