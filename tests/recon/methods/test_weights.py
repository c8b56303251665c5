"""Weights that are handed around: what was exported reconstructs alike, and what is not right is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kspace.errors import InputError
from kspace.masks import MaskSpec
from kspace.operators import Sense
from models.systems import build_generator, find_systems, resolve
from recon.commands import models
from recon.commands.export import export
from recon.compare.methods import by_default
from recon.datasets.kspace_dataset import KSpaceDataset
from recon.methods import classical, generator, weights
from recon.methods.choose import choose
from recon.methods.weights import Card
from tests.conftest import ROOT
from tests.support.scans import scan
from tests.support.training import small
from tests.support.weights import trained, written

# ------------------------------------------------------------------------------------------------------------ what is right


@pytest.mark.parametrize("system", sorted(find_systems()))
def test_exported_weights_reconstruct_the_same_image(tmp_path: Path, system: str) -> None:
    network, card = trained(system)
    weights.write(tmp_path / "w.safetensors", network.state_dict(), card)
    y, op, _ = scan()
    again = generator.load(tmp_path / "w.safetensors")
    network.to(memory_format=torch.channels_last)  # as it is trained and loaded: convolutions add up in another order
    with torch.no_grad():
        assert torch.equal(again(y, op), network(y, op))
    assert again.name == "w"
    assert again.sha256 == weights.digest(network.state_dict())


def test_half_precision_is_close_and_half_the_size(tmp_path: Path) -> None:
    network, card = trained(generator={"width": 16, "depth": 2})
    whole = weights.write(tmp_path / "whole.safetensors", network.state_dict(), card)
    weights.write(tmp_path / "half.safetensors", network.state_dict(), card, half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    y, op, _ = scan()
    a, b = (generator.load(tmp_path / f"{name}.safetensors")(y, op) for name in ("whole", "half"))
    assert torch.linalg.vector_norm(a - b) < 2e-3 * torch.linalg.vector_norm(a)
    assert whole.sha256 != weights.read_card(tmp_path / "half.safetensors").sha256


def test_what_a_base_holds_is_left_out_and_read_from_there(tmp_path: Path) -> None:
    first, card = trained("varnet")
    state = {name: x + 1 if name.startswith("networks.0") else x for name, x in first.state_dict().items()}
    name = next(name for name, x in first.state_dict().items() if name.startswith("networks.1") and x.ndim == 1)
    first.state_dict()[name][0] = 0.0
    state[name] = state[name].clone()
    state[name][0] = -0.0  # equal, but not bit for bit
    base, path = tmp_path / "base.safetensors", tmp_path / "w.safetensors"
    weights.write(base, first.state_dict(), card)
    written_card = weights.write(path, state, card, base=base)
    assert written_card.sha256 == weights.digest(state)
    assert all(other == name or other.startswith("networks.0") for other in load_file(path))
    read = weights.read(path)[1]
    assert all(torch.equal(read[name], x) for name, x in state.items())
    weights.restate(path, path, notes="changed")
    assert weights.base_of(path) == base, "in the same folder the base stays"
    (tmp_path / "far").mkdir()
    weights.restate(path, tmp_path / "far" / "w.safetensors")
    assert weights.base_of(tmp_path / "far" / "w.safetensors") is None, "elsewhere it does not"
    assert weights.read(tmp_path / "far" / "w.safetensors")[0].sha256 == written_card.sha256
    with pytest.raises(InputError, match="have no base itself"):
        weights.write(tmp_path / "v.safetensors", state, card, base=path)
    with pytest.raises(InputError, match="must be another file"):
        weights.write(base, first.state_dict(), card, force=True, base=base)
    assert weights.read(base)[0].sha256 == weights.digest(first.state_dict()), "nothing was lost"
    weights.write(base, {name: 2 * x for name, x in first.state_dict().items()}, card, force=True)
    with pytest.raises(InputError, match="their sha256 is not that of the card"):
        weights.read(path)
    weights.write(base, {"other": torch.ones(2)}, card, force=True)
    with pytest.raises(InputError, match=r"base.safetensors does not hold the rest .*; fetch both files again"):
        weights.read(path)
    base.unlink()
    with pytest.raises(InputError, match=r"the rest of these weights is in base.safetensors, .*; keep both together"):
        weights.read(path)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/passwd", "a/b"])
def test_a_base_in_another_folder_is_refused(tmp_path: Path, name: str) -> None:
    network, card = trained("varnet")
    path = tmp_path / "w.safetensors"
    weights.write(path, network.state_dict(), card)
    metadata = {"format": weights.FORMAT, "card": json.dumps(dataclasses.asdict(weights.read_card(path)))}
    save_file({"a": torch.ones(2)}, path, metadata={**metadata, "base": name, "shared": "[]"})
    with pytest.raises(InputError, match="the weights name a base outside of their folder"):
        weights.read(path)


def test_networks_in_bfloat16_add_the_same_but_for_rounding(tmp_path: Path) -> None:
    path = written(tmp_path)
    y, op, _ = scan(noise=0.02)
    whole, rounded = (generator.load(path, precision=p)(y, op) for p in ("fp32", "bf16"))
    added = torch.linalg.vector_norm(whole - classical.make("sense")(y, op))
    difference = torch.linalg.vector_norm(rounded - whole)
    assert rounded.dtype == torch.complex64
    assert 0 < difference < 2e-2 * added


@pytest.mark.parametrize(("able", "used"), [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": False}, "fp32"), ({}, "fp32")])
def test_auto_takes_bfloat16_where_the_processor_multiplies_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], used: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    path = written(tmp_path)
    assert generator.load(path, precision="auto").precision == used
    assert generator.load(path).precision == "fp32"
    assert choose("dagan", weights=path, device="cpu").details["precision"] == used


def test_the_card_comes_back_and_takes_the_name_of_the_file(tmp_path: Path) -> None:
    card = weights.read_card(written(tmp_path, "head.safetensors"))
    assert (card.name, card.system, card.preset) == ("head", "dagan", "raw")
    assert card.metrics == {"gain_db": 1.25}
    assert card.config == json.loads(json.dumps(resolve(small())))


def test_it_is_a_reconstructor_like_any_other(tmp_path: Path) -> None:
    method = generator.load(written(tmp_path))
    y, op, _ = scan(batch=(2, 3), noise=0.02)
    image = method(y, op)
    assert image.shape == (2, 3, 32, 24)
    assert image.dtype == torch.complex64
    assert not image.requires_grad
    assert not image.is_inference(), "callers may do with it what they like"
    for c in (1e-6, 1e6):
        scaled = method(c * y, dataclasses.replace(op, noise_std=c)) / c
        assert torch.linalg.vector_norm(scaled - image) < 1e-4 * torch.linalg.vector_norm(image)
    one = method(y[1, 2], Sense(op.maps[1, 2], op.mask))
    assert torch.linalg.vector_norm(one - image[1, 2]) < 1e-4 * torch.linalg.vector_norm(one)
    assert method(y[:0], Sense(op.maps[:0], op.mask)).shape == (0, 3, 32, 24)


def test_many_planes_are_done_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = generator.load(written(tmp_path))
    y, op, _ = scan(batch=(5,), noise=0.02)
    op = dataclasses.replace(op, n_averages=torch.randint(1, 3, y.shape, generator=torch.Generator().manual_seed(1)))
    whole = method(y, op)
    monkeypatch.setattr(generator, "MAX_POINTS", 2 * y[0].numel())
    parts = method(y, op)
    assert torch.linalg.vector_norm(parts - whole) < 1e-4 * torch.linalg.vector_norm(whole)


def test_a_published_preset_sees_magnitudes_up_to_one_whatever_the_unit(tmp_path: Path) -> None:
    config = {"system": "refinegan", "preset": "published", "generator": {"width": 2}}
    network = build_generator(config).eval()
    weights.write(tmp_path / "p.safetensors", network.state_dict(), Card("", resolve(config)))
    method = generator.load(tmp_path / "p.safetensors")
    y, op, _ = scan((256, 256), 1, (1,))
    with torch.no_grad():
        peak = op.adjoint(y).abs().max()
        expected = network(y / peak, op) * peak
    torch.testing.assert_close(method(y, op), expected)
    torch.testing.assert_close(method(100 * y, op) / 100, expected, rtol=1e-3, atol=1e-4)


def test_what_lies_outside_the_training_is_said(tmp_path: Path) -> None:
    method = generator.load(written(tmp_path))
    _, few, _ = scan(n_coils=3)
    _, many, _ = scan(n_coils=6)
    assert method.outside(few, 4.1) == []
    assert method.outside(many, 8.0) == ["6 coils; trained with 2 to 4", "acceleration 8.0; trained with 2 to 4"]


# ------------------------------------------------------------------------------------------------------------ what is wrong


def damage(path: Path, how: str) -> Path:
    content = bytearray(path.read_bytes())
    (n,) = struct.unpack("<Q", content[:8])
    if how == "a bit":
        content[-5] ^= 0x10
    elif how == "header":
        content[20] ^= 0xFF
    elif how == "truncated":
        del content[-40:]
    elif how == "header only":
        del content[8 + n :]
    elif how == "empty":
        content.clear()
    elif how == "length":
        content[:8] = struct.pack("<Q", 1 << 60)
    elif how == "pickle":
        torch.save({"state_dict": {}}, path)
        return path
    elif how == "text":
        content[:] = b"not weights at all"
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize("how", ["a bit", "header", "truncated", "header only", "empty", "length", "pickle", "text"])
def test_damaged_files_are_refused(tmp_path: Path, how: str) -> None:
    path = damage(written(tmp_path), how)
    with pytest.raises(InputError, match=r"damaged|cannot be read") as caught:
        generator.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_every_single_flipped_bit_of_the_numbers_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = path.read_bytes()
    (n,) = struct.unpack("<Q", content[:8])
    for place in range(8 + n, len(content), max(1, (len(content) - 8 - n) // 25)):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(InputError, match="the weights are damaged: their sha256 is not that of the card"):
            weights.read(path)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"a safetensors file without our card; weights are made by recon export"):
        generator.load(tmp_path / "other.safetensors")


def test_a_renamed_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "knee.safetensors")
    path.rename(tmp_path / "brain.safetensors")
    with pytest.raises(InputError, match=r"the file was renamed: its card says 'knee'; call it knee.safetensors again"):
        generator.load(tmp_path / "brain.safetensors")


def test_weights_of_another_system_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(InputError, match=r"these are weights of dagan, not of gancs; use --method dagan"):
        generator.load(path, system="gancs")


def forge(path: Path, change: Any) -> Path:
    """Rewrite a file with another card, as someone would who means it."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        card = json.loads(file.metadata()["card"])
    state = load_file(path)
    text = change(card, state)
    card["sha256"] = weights.digest(state)
    save_file(state, path, {"format": weights.FORMAT, "card": text if isinstance(text, str) else json.dumps(card)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card, state: "{", "the card of the weights cannot be read"),
        (lambda card, state: "[]", "the card of the weights cannot be read"),
        (lambda card, state: card.pop("config") and None, "the card of the weights cannot be read"),
        (lambda card, state: card.update(config={}), "the card of the weights cannot be read"),
        (lambda card, state: card.update(config="dagan"), "the card of the weights cannot be read"),
        (lambda card, state: card.update(run="rm -rf"), "the card of the weights cannot be read"),
        (
            lambda card, state: card["config"].update(system="os"),
            "a network that this version does not know .unknown system 'os'",
        ),
        (lambda card, state: card["config"]["generator"].update(width=8), "the weights do not fit the network"),
        (lambda card, state: card["config"]["generator"].update(wide=8), "does not know .unknown key 'wide'"),
        (lambda card, state: state.popitem() and None, "the weights do not fit the network"),
    ],
)
def test_cards_that_do_not_belong_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = forge(written(tmp_path), change)
    with pytest.raises(InputError, match=message):
        generator.load(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "there are no weights called 'nothing'"),
        ("gone.safetensors", "gone.safetensors: there is no such file of weights"),
        (".", "a folder, not a file of weights"),
    ],
)
def test_what_is_not_there_is_said(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        generator.load(name)


def test_writing_refuses_what_could_not_be_read(tmp_path: Path) -> None:
    network, card = trained()
    with pytest.raises(InputError, match=r"files that end in .safetensors"):
        weights.write(tmp_path / "w.pt", network.state_dict(), card)
    path = written(tmp_path)
    with pytest.raises(InputError, match="the file exists"):
        weights.write(path, network.state_dict(), card)
    state = {**network.state_dict(), "bad": torch.tensor([1e6])}
    with pytest.raises(InputError, match="the weights bad are not finite in half precision"):
        weights.write(tmp_path / "h.safetensors", state, card, half=True)
    with pytest.raises(InputError, match="cannot be written"):
        weights.write(path / "under" / "w.safetensors", network.state_dict(), card)
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"], "nothing half-written is left"


# ------------------------------------------------------------------------------------------------------------- the commands


def test_export_and_models(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = tmp_path / "run", tmp_path / "weights"
    with pytest.raises(InputError, match=r"the run has no best.safetensors"):
        export(run, folder / "brain.safetensors")
    path = written(run, "best.safetensors")
    export(run, folder / "brain.safetensors", licence="CC BY 4.0", attribution="Cheng", notes="T1c only")
    card = weights.read_card(folder / "brain.safetensors")
    assert (card.name, card.notes) == ("brain", "T1c only")
    assert card.data == {"licence": "CC BY 4.0", "attribution": "Cheng"}
    assert "CC BY 4.0" in capsys.readouterr().out
    y, op, _ = scan()
    assert torch.equal(generator.load(path)(y, op), generator.load(folder / "brain.safetensors")(y, op))

    monkeypatch.setattr(weights, "bundled", lambda: {"brain": folder / "brain.safetensors"})
    models.models()
    assert "brain: dagan (raw)" in (listing := capsys.readouterr().out)
    assert "+1.2 dB over SENSE, R 2.0 to 4.0, 2 to 4 coils" in listing
    models.models("brain", json_output=True)
    assert json.loads(capsys.readouterr().out)["sha256"] == card.sha256
    assert generator.load("brain").name == "brain"


def test_bundled_weights_are_of_known_systems_within_sixty_megabytes() -> None:
    names = {
        "csgm",
        "dagan",
        "dealiasing",
        "gancs",
        "iagan",
        "kspacegan",
        "mdcsrn",
        "rcgan",
        "reconglgan",
        "refinegan",
        "srgan",
        "varnet",
        "visual",
    }
    assert names <= set(weights.bundled())
    assert {weights.read_card(path).system for path in weights.bundled().values()} <= set(find_systems())
    assert sum(path.stat().st_size for path in (ROOT / "models" / "weights").iterdir()) < 60e6


@pytest.mark.parametrize("mask", ["random1d:4", "poisson2d:8"])
def test_bundled_weights_beat_sense_on_a_real_head_it_was_not_trained_on(data_dir: Path, mask: str) -> None:
    example = KSpaceDataset([data_dir / "fastmri_style" / "brain_8ch.h5"], [MaskSpec.parse(mask)])[0]
    assert example.truth is not None

    def error(image: torch.Tensor) -> float:
        assert example.truth is not None
        return float((image.abs() - example.truth)[example.op.support].norm())

    sense = error(classical.make("sense")(example.y, example.op))
    for name in by_default([MaskSpec.parse(mask).family]):
        assert error(generator.load(name)(example.y, example.op)) < sense, name


def test_a_comparison_takes_the_generators_that_know_the_mask_and_need_no_fit() -> None:
    lines, every = by_default(["random1d"]), by_default()
    assert {"refinegan", "varnet"} <= set(lines) <= set(every)
    assert not {"csgm", "iagan"} & set(every)
    assert by_default(["spiral"]) == []


def test_bundled_weights_can_be_loaded() -> None:
    for name, path in weights.bundled().items():
        method = generator.load(name)
        assert method.card.data.get("licence"), f"{path} does not say whose data it was trained on"
        assert method.card.preset == "raw"
