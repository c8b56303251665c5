"""Perceptual distances: those of their authors' code on the same weights, by hand where there is none, or a reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.parts import features
from models.parts.features import MrFeatures
from models.parts.perceptual import Vgg
from recon.metrics import perceptual
from recon.metrics.perceptual import HEADS, TAPS, dists, lpips, mr_distance, why_not


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VGG-16 of random weights: used for relative comparison only."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file(Vgg("vgg16", TAPS).state_dict(), path)
    return path


@pytest.fixture
def mr_weights(tmp_path: Path) -> Path:
    path = tmp_path / "mr_features.safetensors"
    save_file(MrFeatures().state_dict(), path)
    return path


def pair(shape: tuple[int, ...] = (2, 33, 39), noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    target = np.stack([np.exp(-3 * ((x - 0.2 * i) ** 2 + y**2)) * (1 + 0.5 * np.sin(15 * x)) for i in range(shape[0])])
    return target, np.abs(target + noise * generator.standard_normal(shape))


def as_theirs(x: np.ndarray, peak: np.ndarray) -> Tensor:
    """``(n 3 y x)`` in [0, 1]."""
    scaled = np.clip(x / peak.max((1, 2), keepdims=True), 0, 1)
    return torch.from_numpy(scaled.astype(np.float32))[:, None].expand(-1, 3, -1, -1)


def layers(backbone: Path) -> nn.Sequential:
    """torchvision's layers with the weights of `backbone`."""
    from safetensors.torch import load_file
    from torchvision.models.vgg import cfgs, make_layers

    network = make_layers(cfgs["D"])
    state = {key.removeprefix("features."): value for key, value in load_file(backbone).items()}
    network.load_state_dict(state, strict=False)
    return network


def test_lpips_is_torchmetrics(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips", reason="needs torchmetrics with LPIPS")
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_, **__: layers(backbone))
    network = theirs._LPIPS(pretrained=True, net="vgg", pnet_rand=True)
    target, image = pair()
    with torch.no_grad():
        expected = network(as_theirs(target, target), as_theirs(image, target), normalize=True).mean()
    assert lpips(target, image, backbone) == pytest.approx(float(expected), rel=1e-4)
    assert why_not("lpips", backbone) is None


def test_dists_is_torchmetrics(backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: Any = pytest.importorskip("torchmetrics.functional.image.dists", reason="needs torchmetrics with DISTS")
    monkeypatch.setattr(theirs, "vgg16", lambda **_: SimpleNamespace(features=layers(backbone)))
    network = theirs.DISTSNetwork(load_weights=False)
    state = perceptual._head("dists")
    network.alpha.data, network.beta.data = state["alpha"], state["beta"]
    target, image = pair()
    with torch.no_grad():
        expected = network(as_theirs(image, target), as_theirs(target, target)).mean()
    assert dists(target, image, backbone) == pytest.approx(float(expected), rel=1e-3, abs=1e-5)


def test_mr_distance_by_hand(mr_weights: Path) -> None:
    target, image = pair((1, 32, 32))
    network = features.load_mr_features(mr_weights)
    levels = []
    for a, b in zip(*(network.features(as_theirs(x, target)[:, :1]) for x in (target, image)), strict=True):
        a, b = a[0].numpy().astype(np.float64), b[0].numpy().astype(np.float64)
        cosine = (a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))
        levels.append((2 - 2 * cosine).mean())  # the squared distance of unit vectors
    assert mr_distance(target, image, mr_weights) == pytest.approx(np.mean(levels), rel=1e-3)


def test_every_distance_grows_with_the_error(backbone: Path, mr_weights: Path) -> None:
    for metric, weights in ((lpips, backbone), (dists, backbone), (mr_distance, mr_weights)):
        target = pair()[0]
        values = [metric(target, pair(noise=noise)[1], weights) for noise in (0.0, 0.03, 0.1)]
        assert values[0] == pytest.approx(0, abs=1e-5)
        assert values[0] < values[1] < values[2]
        assert metric(1e-7j * target, 1e-7 * pair()[1], weights) == pytest.approx(values[2], rel=1e-3)  # no unit, no phase
        both, first, second = (metric(target[s], pair()[1][s], weights) for s in (slice(None), slice(1), slice(1, 2)))
        assert both == pytest.approx((first + second) / 2, rel=1e-4)
        assert metric(0 * target, 0 * target, weights) == pytest.approx(0, abs=1e-5)


def test_without_weights_there_is_no_number_but_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: Path, mr_weights: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(features, "MR_WEIGHTS", tmp_path / "none.safetensors")
    target, image = pair()
    assert [metric(target, image) for metric in (mr_distance, lpips, dists)] == [None] * 3
    assert "absent" in (why_not("mr") or "")
    assert "vgg16-397923af.pth" in (why_not("lpips") or "")
    assert "not found" in (why_not("dists", tmp_path / "none.pth") or "")
    assert why_not("mr", mr_weights) is None
    with pytest.raises(ValueError, match="must both be"):
        lpips(target, image[:1])
    small = pair((1, 31, 60))
    assert lpips(*small, backbone) is None  # fewer points than the network halves


def test_heads_that_are_not_the_known_ones_are_not_used(monkeypatch: pytest.MonkeyPatch, backbone: Path) -> None:
    perceptual._lpips.cache_clear()
    monkeypatch.setitem(HEADS, "lpips", (HEADS["lpips"][0], "0" * 64))
    assert lpips(*pair(), backbone) is None
    assert "the checksum is not that of the lpips weights" in (why_not("lpips", backbone) or "")
    monkeypatch.setitem(HEADS, "lpips", ("lpips_models/none.pth", "0" * 64))
    assert "has no weights of lpips" in (why_not("lpips", backbone) or "")


@pytest.mark.parametrize("metric", ["lpips", "dists"])
def test_the_true_distances(metric: str) -> None:
    """With torchvision's weights, where they are: equal images are equal, noise is far."""
    if (why := why_not(metric)) is not None:
        pytest.skip(f"{metric}: {why}")
    measure = {"lpips": lpips, "dists": dists}[metric]
    assert measure(pair()[0], pair()[0]) == pytest.approx(0, abs=1e-4)
    value = measure(*pair((1, 128, 128), noise=0.3))
    assert value is not None
    assert 0.1 < value < 1.5


def test_the_shipped_network_tells_noise_from_none() -> None:
    if (why := why_not("mr")) is not None:
        pytest.skip(f"mr: {why}")
    target = pair((1, 64, 64))[0]
    values = [mr_distance(target, pair((1, 64, 64), noise)[1]) for noise in (0.0, 0.02, 0.2)]
    assert values == sorted(values)
    assert values[2] > 0.01
