"""``recon train`` from the command line to weights that reconstruct."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kspace.errors import InputError
from models.systems import find_systems
from recon import cli
from recon.commands import train
from recon.commands.export import export
from recon.commands.simulate import simulate
from recon.methods import generator, weights
from tests.conftest import ROOT
from tests.support.scans import scan
from tests.support.training import pictures

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
TINY = ["--generator.width", "4", "--data.matrix", "[32,32]", "--data.coils", "[2]", "--data.val_coils", "2",
        "--data.batch_size", "2", "--data.masks", "[random1d:2]", "--data.group_size", "2", "--data.val_fraction", "0.25",
        "--data.calibration_width", "12", "--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "heads")


def arguments(images: Path, run: Path, *more: str, config: str = "dagan") -> list[str]:
    return ["--config", str(ROOT / "configs" / f"{config}.yaml"), "--data.images", str(images), "-o", str(run), *TINY, *more]


@pytest.mark.parametrize("name", [p.stem for p in CONFIGS if "system" in yaml.safe_load(p.read_text())])
def test_every_config_trains_two_steps_and_its_export_reconstructs_the_same_image(
    images: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--generator.size", "16", "--generator.fit.steps", "2") if find_systems()[name]["raw"].generator.fitted else ()
    assert train.train(arguments(images, tmp_path / "run", "--card.anatomies", "[head]", *few, config=name)) == 0
    assert "2 generator steps" in capsys.readouterr().out
    export(tmp_path / "run", tmp_path / "out.safetensors", licence="CC0")
    card = weights.read_card(tmp_path / "out.safetensors")
    assert card.system == name
    assert card.training["steps"] == 2
    assert card.envelope["anatomies"] == ["head"]
    sampling = {"masks": ["random1d:2"], "acceleration": [2.0, 2.0], "coils": [2]}
    known = {} if few else sampling  # a prior is trained on images
    assert {key: value for key, value in card.envelope.items() if key in sampling} == known
    assert "gain_db" in card.metrics
    assert str(tmp_path) not in str(card), "paths of the machine are nobody else's business"

    kept = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    again = generator.load(tmp_path / "out.safetensors")
    y, op, _ = scan(noise=0.02)
    trained = models_systems_generator(card.config, kept)
    with torch.no_grad():
        assert torch.equal(again(y, op), trained(y, op))


def models_systems_generator(config: Any, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    from models.systems import build_generator

    network = build_generator(config).eval()
    network.load_state_dict({k.removeprefix("average."): v for k, v in state.items() if k.startswith("average.")})
    return network.to(memory_format=torch.channels_last)  # as it is trained and loaded: convolutions add up in another order


def test_a_run_goes_on_from_its_folder_with_its_own_options(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train.train(arguments(images, run, "--trainer.val_check_interval", "1"))
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["generator"]["width"] == 4
    assert saved["generator"]["depth"] == 3, "defaults are filled in"
    assert saved["trainer"]["val_check_interval"] == 1
    with pytest.raises(InputError, match=r"run: the folder holds a run; choose another --output, go on with --resume"):
        train.train(arguments(images, run))
    more = ["--config", str(run / "config.yaml"), "-o", str(run), "--resume", str(run), "--trainer.max_steps", "3"]
    assert train.train(more) == 0
    assert weights.read_card(run / "last.safetensors").training["steps"] == 3
    assert (run / "panels" / "step_0000001.png").stat().st_size > 1000
    assert any((run / "tensorboard" / "version_0").iterdir())


def test_training_on_volumes_with_strips_and_a_cache(images: Path, tmp_path: Path) -> None:
    simulate(images, tmp_path / "h5", matrix=(32, 32), coils=2, group_size=2, split=0.25)
    options = ["--config", str(ROOT / "configs" / "dagan.yaml"), "--data.path", str(tmp_path / "h5"), "--generator.width", "4",
               "--data.masks", "[random1d:2]", "--data.calibration_width", "12", "--data.strip", "16", "--data.batch_size", "2",
               "--data.cache", str(tmp_path / "cache"), "--data.freeze", "true",
               "--trainer.max_steps", "3", "--trainer.accelerator", "cpu"]  # fmt: skip
    assert train.train([*options, "-o", str(tmp_path / "a")]) == 0
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(files) >= 6
    assert train.train([*options, "-o", str(tmp_path / "b")]) == 0
    assert {p: p.stat().st_mtime_ns for p in files} == files, "what was made once is not made again"
    a, b = (weights.read(tmp_path / run / "last.safetensors")[1] for run in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a), "and the same options give the same weights"


def test_training_starts_from_weights_and_with_their_generator(images: Path, tmp_path: Path) -> None:
    train.train(arguments(images, tmp_path / "first", "--generator.width", "6", "--update.ema", "0.9"))
    export(tmp_path / "first", tmp_path / "start.safetensors", licence="CC0")
    argv = arguments(images, tmp_path / "second", "--init", str(tmp_path / "start.safetensors"), "--g_optimiser.lr.start", "0")
    width = argv.index("--generator.width")
    del argv[width : width + 2]
    assert train.train(argv) == 0
    (first, before), (_, after) = (
        weights.read(p) for p in (tmp_path / "start.safetensors", tmp_path / "second" / "last.safetensors")
    )
    assert all(torch.equal(before[name], after[name]) for name in before), "with a learning rate of 0 they stay"
    card = weights.read_card(tmp_path / "second" / "last.safetensors")
    assert card.config["generator"]["width"] == 6
    assert card.training["init"] == "start"
    assert card.training["init_sha256"] == first.sha256
    with pytest.raises(InputError, match=r"the weights do not fit the generator.*--generator options"):
        train.train(arguments(images, tmp_path / "third", "--init", str(tmp_path / "start.safetensors")))


def test_a_published_preset_trains_on_plain_pictures_and_reports_its_own_metrics(tmp_path: Path) -> None:
    heads = pictures(tmp_path / "heads", n=4, size=256)
    options = ["--system", "refinegan", "--preset", "published", "--generator.width", "2", "--discriminator.width", "2"]
    data = ["--data.images", str(heads), "--data.plain", "true", "--data.group_size", "1", "--data.val_fraction", "0.25",
            "--data.masks", "[radial:30%]", "--trainer.max_steps", "1", "--trainer.accelerator", "cpu"]  # fmt: skip
    assert train.train([*options, *data, "-o", str(tmp_path / "run")]) == 0
    card = weights.read_card(tmp_path / "run" / "last.safetensors")
    assert card.preset == "published"
    assert {"refinegan_psnr", "refinegan_psnr_zero_filled"} <= set(card.metrics)


def test_overfitting_validates_what_it_trains_on(images: Path, tmp_path: Path) -> None:
    more = ["--trainer.overfit_batches", "1", "--trainer.max_steps", "30", "--trainer.check_val_every_n_epoch", "15",
            "--update.ema", "0.5", "--g_optimiser.lr.start", "3e-3",
            "--g_optimiser.lr.warm_up", "0", "--losses.adversarial", "0"]  # fmt: skip
    train.train(arguments(images, tmp_path / "run", "--generator.width", "8", *more))
    assert weights.read_card(tmp_path / "run" / "last.safetensors").metrics["gain_db"] > 1.0


def test_ctrl_c_is_said_and_leaves_weights(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        train.StopOnSignal, "on_train_batch_start", lambda self, *_: setattr(self, "asked", True), raising=False
    )
    assert cli.execute(["train", *arguments(images, tmp_path / "run")]) == 130
    assert f"go on with --resume {tmp_path}/run" in capsys.readouterr().out
    assert weights.read_card(tmp_path / "run" / "last.safetensors").training["steps"] == 1


def test_a_run_that_diverges_is_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--g_optimiser.lr.start", "1e30", "--g_optimiser.lr.warm_up", "0", "--trainer.max_steps", "6"]
    assert cli.execute(["train", *arguments(images, tmp_path / "run", *more)]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"recon: error: {tmp_path / 'run'}: the ")
    assert "at generator step" in message
    assert "lower the learning rate" in message


# ---------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data.coil", "[2]"], r"coil"),
        (["--trainer.max_step", "3"], r"max_step"),
        (["--generator.widht", "3"], r"widht"),
        (["--system", "dagan", "--schedule.n_critic", "2"], "n_critic 2; the key is now schedule.n_discriminator"),
        (["--system", "dagen"], r"unknown system 'dagen'"),
        (["--data.masks", "[random1f:4]"], r"unknown mask family 'random1f'"),
        (["--data.path", "/nowhere"], r"volumes and images at once"),
        (["--data.images", "/nowhere"], r"/nowhere"),
        (["--data.strip", "16", "--data.masks", "[poisson2d:2]"], r"cropped readouts need masks of complete lines"),
        (["--data.augment", "true", "--data.cache", "c", "--data.freeze", "true"], r"augmentation makes every example new"),
        (["--data.val_coils", "0"], r"val_coils is 0"),
        (["--schedule.mask_per", "batch"], r"one mask per batch is for plain images"),
        (["--resume", "/nowhere"], r"/nowhere: there is no checkpoint to go on with"),
        (["--trainer.accumulate_grad_batches", "2"], r"gradients are not accumulated"),
        (["--card.licens", "CC0"], r"licens"),
        (["--init", "nothing"], r"there are no weights called 'nothing'"),
        (
            ["--init", "refinegan"],
            "% of the parameters are also in these weights of another system; choose",
        ),
    ],
)
def test_mistakes_are_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert cli.execute(["train", *arguments(images, tmp_path / "run", *more)]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert message in said[0]


def test_options_of_nested_sections_add_up(images: Path) -> None:
    given = train.parse(arguments(images, Path("run"), "--g_optimiser.lr.start", "3e-4", "--g_optimiser.lr.warm_up", "7"))
    rate = train.system_config(given)["g_optimiser"]["lr"]
    assert (rate["start"], rate["warm_up"], rate["kind"]) == (3e-4, 7, "cosine")


def test_help_of_a_system_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["train", "--system", "refinegan", "--help"]) == 0
    said = capsys.readouterr().out
    assert "--losses.cyclic_measurement" in said
    assert "--generator.chain" in said


def test_help_lists_the_trainers_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["train", "--help"]) == 0
    said = capsys.readouterr().out
    for flag in ("--trainer.devices", "--trainer.precision", "--trainer.gradient_clip_val", "--data.strip", "--update.ema"):
        assert flag in said


def test_the_trainers_clipping_is_ours() -> None:
    given = train.parse(["--system=dagan", "--data.images", "x", "--trainer.gradient_clip_val", "0.5"])
    options, update = train._trainer_options(given)
    assert (update.clip, update.clip_algorithm) == (0.5, "norm")
    assert "gradient_clip_val" not in options
