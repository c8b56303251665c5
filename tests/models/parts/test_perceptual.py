"""Feature networks: the right layers, trained weights or a refusal, and the distance by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from kspace.errors import InputError
from models.parts import features, perceptual
from models.parts.features import MrFeatures, load_mr_features
from models.parts.interface import Generator, Step
from models.parts.perceptual import SOURCES, Perceptual, Vgg, _Source, feature_extractor, load_vgg
from models.systems import build
from tests.support.scans import scan

SHALLOW = ("relu1_2", "pool2")


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Random weights of the layers up to pool2, under torchvision's names, and one that nobody asks for."""
    return {**Vgg("vgg16", SHALLOW).state_dict(), "classifier.0.weight": torch.zeros(2, 2)}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty torchvision cache and no way to fill it."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    return tmp_path


@pytest.mark.parametrize(("source", "plan"), [("vgg16", "D"), ("vgg19", "E")])
def test_layers_are_torchvisions(source: str, plan: str) -> None:
    from torchvision.models.vgg import cfgs, make_layers

    with torch.device("meta"):
        theirs = {f"features.{k}": v.shape for k, v in make_layers(cfgs[plan]).state_dict().items()}
        ours = {k: v.shape for k, v in Vgg(source, ("pool5",)).state_dict().items()}
    assert ours == theirs


def test_activations_are_torchvisions() -> None:
    from torchvision.models.vgg import cfgs, make_layers

    theirs = make_layers(cfgs["D"][:10]).eval()
    network = Vgg("vgg16", ("relu2_1", "pool3"))
    network.features.load_state_dict(theirs[: len(network.features)].state_dict())
    x = torch.rand(2, 1, 16, 24)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in perceptual.IMAGENET)
    rgb = (x.expand(-1, 3, -1, -1) - mean) / std
    with torch.no_grad():
        middle, last = network(x)
        torch.testing.assert_close(middle, theirs[:7](rgb), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(last, theirs[: len(network.features)](rgb), rtol=1e-4, atol=1e-5)


def test_pooling_is_tensorflows_and_the_caffe_weights_get_intensities_of_255() -> None:
    with torch.device("meta"):
        (pooled,) = Vgg("vgg16_caffe", ("pool4",), size=244)(torch.empty(1, 1, 256, 256))
    assert pooled.shape == (1, 512, 16, 16), "244-122-61-31-16"
    network = Vgg("vgg16_caffe", ("relu1_1",))
    seen = []
    network.features[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.ones(1, 1, 4, 4))
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([255 - 123, 255 - 117, 255 - 104], abs=0.01)


def test_unknown_layers_are_refused() -> None:
    with pytest.raises(InputError, match=r"vgg16 has no layers \['relu9_1'\]; choose from relu1_1"):
        Vgg("vgg16", ("relu9_1",))


def test_weights_from_a_safetensors_file_given(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(state, path)
    network = load_vgg("vgg16", SHALLOW, weights=path)
    assert torch.equal(network.features[0].weight, state["features.0.weight"])  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training
    x = torch.rand(1, 1, 8, 8, requires_grad=True)
    network(x)[-1].sum().backward()
    assert x.grad is not None, "frozen, it still teaches the image"


def test_files_that_are_not_what_they_say_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match=r"absent.safetensors: no such file of VGG weights"):
        load_vgg("vgg16", SHALLOW, weights=tmp_path / "absent.safetensors")
    state.pop("features.2.weight")
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"not the weights of vgg16: features.2.weight is missing"):
        load_vgg("vgg16", SHALLOW, weights=tmp_path / "part.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "part.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged or truncated safetensors file"):
        load_vgg("vgg16", SHALLOW, weights=tmp_path / "cut.safetensors")
    (tmp_path / "stranger.pth").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"only torchvision's own vgg16-397923af.pth or a .safetensors"):
        load_vgg("vgg16", SHALLOW, weights=tmp_path / "stranger.pth")
    (tmp_path / "vgg16-397923af.pth").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"its sha256 begins with .*, not with the 397923af of its name"):
        load_vgg("vgg16", SHALLOW, weights=tmp_path / "vgg16-397923af.pth")


def test_torchvisions_file_is_read_from_its_cache_after_its_hash_was_checked(
    no_network: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_network / "checkpoints").mkdir()
    torch.save(state, no_network / "whole.pth")
    content = (no_network / "whole.pth").read_bytes()
    name = f"vgg16-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (no_network / "checkpoints" / name).write_bytes(content)
    monkeypatch.setitem(SOURCES, "vgg16", _Source((2, 2, 3, 3, 3), name, perceptual.IMAGENET))
    network = load_vgg("vgg16", SHALLOW)
    assert torch.equal(network.features[2].weight, state["features.2.weight"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "file"), [("vgg16", "vgg16-397923af.pth"), ("vgg19", "vgg19-dcbb9e9d.pth")])
def test_without_weights_it_refuses_and_names_the_file(no_network: Path, name: Any, file: str) -> None:
    with pytest.raises(
        InputError, match=f"needs {file}, which is not there and cannot be fetched .*no network.* perceptual.weights"
    ):
        feature_extractor(Perceptual(name))


def test_a_system_that_wants_features_refuses_too_and_needs_none_at_weight_zero(no_network: Path) -> None:
    config: dict[str, Any] = {"system": "dagan", "generator": {"width": 4}, "perceptual": {"features": "vgg19"}}
    assert "perceptual" not in [t.name for t in build(config).g_terms]
    with pytest.raises(InputError, match=r"vgg19-dcbb9e9d\.pth"):
        build({**config, "losses": {"perceptual": 0.1}})


def test_own_features_load_or_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mr_features.safetensors"
    monkeypatch.setattr(features, "MR_WEIGHTS", path)
    with pytest.raises(InputError, match=r"mr_features.safetensors: the weights of the MR feature network are absent"):
        feature_extractor(Perceptual("mr"))
    trained = MrFeatures()
    save_file({k: v.half() for k, v in trained.state_dict().items()}, path)
    again = load_mr_features()
    assert torch.equal(again.tumour.weight, trained.tumour.weight.half().float())
    levels = feature_extractor(Perceptual("mr"))(torch.rand(2, 1, 33, 20))
    assert [tuple(v.shape[1:]) for v in levels] == [(32, 33, 20), (64, 17, 10), (96, 9, 5), (128, 5, 3)]
    save_file({"other": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not the weights of the MR feature network"):
        load_mr_features()
    path.write_bytes(b"x" * 20)
    with pytest.raises(InputError, match="damaged or truncated safetensors file"):
        load_mr_features()


def test_own_features_solve_three_tasks() -> None:
    network = MrFeatures(widths=(8, 16), n_classes=3)
    out = network(torch.rand(2, 1, 24, 24))
    assert {k: tuple(v.shape) for k, v in out.items()} == {"tumour": (2, 3), "rotation": (2, 4), "box": (2, 4)}
    assert ((out["box"] > 0) & (out["box"] < 1)).all()
    assert sum(p.numel() for p in MrFeatures().parameters()) < 500_000


class Plain(Generator):
    def intermediates(self, y: Tensor, op: Any) -> dict[str, Tensor]:
        return {"image": op.adjoint(y)}

    def learned(self) -> list[nn.Module]:
        return []


def test_distance_by_hand() -> None:
    y, op, target = scan((12, 10))
    image = (target * 1.1 + 0.1).requires_grad_(True)
    step = Step({"image": image}, target, y, op, Plain())

    def extract(x: Tensor) -> list[Tensor]:
        return [x, 3 * nn.functional.avg_pool2d(x, 2)]

    a, b = image.detach().abs()[:, None], target.abs()[:, None]
    plain = [(p - q).square().mean() for p, q in zip(extract(a), extract(b), strict=True)]
    torch.testing.assert_close(perceptual.perceptual(step, extract, relative=False), (plain[0] + plain[1]) / 2)
    peak = b.amax((1, 2, 3), keepdim=True)
    pairs = list(zip(extract(a / peak), extract(b / peak), strict=True))
    relative = [((p - q).square().mean((1, 2, 3)) / q.square().mean((1, 2, 3))).mean() for p, q in pairs]
    value = perceptual.perceptual(step, extract)
    torch.testing.assert_close(value, (relative[0] + relative[1]) / 2)
    scaled = Step({"image": 1e5 * image}, 1e5 * target, y, op, Plain())
    torch.testing.assert_close(perceptual.perceptual(scaled, extract), value)
    value.backward()
    assert image.grad is not None
