"""
Own weights on your own scan
============================

From k-space in a NumPy array, and a file of weights, to an image with what the weights' card says about it.
"""

# %%
# Your k-space, as an array. Here a simulated slice stands in for it: complex, ``(coil ky kx)``.
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import recon
from recon.commands.convert import convert
from recon.methods.weights import find, read_card

with recon.open(recon.example_scan("other.h5", matrix=128, n_slices=1, acceleration=3, force=True)) as scan:
    array = scan.kspace().data.numpy()
Path("other.h5").unlink()
np.save("mine.npy", array)

# %%
# Convert it. An array says nothing about position and noise: directions are nominal, and the scan is not whitened.
convert(Path("mine.npy"), Path("mine.h5"), axes="coil,ky,kx", force=True)

# %%
# Your weights: the file that ``recon train`` leaves in its folder, ``best.safetensors``. Here a bundled file stands in for it.
# Its card says of which system the weights are, and on what they were trained.
weights = Path("mine") / "gancs.safetensors"
weights.parent.mkdir(exist_ok=True)
weights.write_bytes(find("gancs").read_bytes())
card = read_card(weights)
print(card.system, card.preset, card.envelope)

# %%
# Reconstruct with them. What lies outside of the training is a warning, and stays on the result; the classical image of the
# same data stands beside the generated one.
scan = recon.open("mine.h5")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    images = scan.reconstruct(method=card.system, weights=weights)
print(*(str(w.message) for w in caught), sep="\n")
print(images.records[0]["description"])
scan.close()

# %%
# Both on one grey scale, and their difference.
beside = {image.role: image for image in images.beside}
generated, classical = (np.abs(image.numpy()) for image in (images[0], beside["sense"]))
top = float(np.percentile(classical, 99.5))
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), layout="constrained")
panels = {f"{images.method} (generated)": generated, "sense": classical, "5 x |difference|": 5 * np.abs(generated - classical)}
for ax, (name, shown) in zip(axes, panels.items(), strict=True):
    ax.imshow(shown, cmap="gray", vmin=0, vmax=top)
    ax.set_title(name)
    ax.axis("off")
plt.show()
for used in (Path("mine.npy"), Path("mine.h5"), weights):
    used.unlink()
