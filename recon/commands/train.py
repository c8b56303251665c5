"""Train any system: options to data, networks and trainer, read top to bottom. The parts are in `recon.train`."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from kspace.errors import InputError
from kspace.masks import MaskSpec
from models import systems
from models.parts.interface import Gan, Generator
from recon.commands.raw_volumes import as_volumes
from recon.methods.precision import SLOW, multiplies_bfloat16
from recon.methods.weights import Card, find, read, read_card
from recon.metrics.image import CONVENTIONS
from recon.train.callbacks import Interrupted, Keeper, Panels, RandomState, StopOnSignal
from recon.train.configs import with_paths
from recon.train.data import DataOptions, DataSets, make_data
from recon.train.loaders import DataModule
from recon.train.module import Diverged, GanModule, UpdateOptions, batches_per_step
from recon.train.supervision import HeldOutRecorder, self_supervised
from recon.train.validation import Recorder

if TYPE_CHECKING:
    import jsonargparse

OURS = ("logger", "default_root_dir", "use_distributed_sampler")  # options of the trainer that this file decides
INTERRUPTED = 130
LEAST_SHARE = 1 / 3  # of a network's parameters, for weights of another system to be a start


@dataclass(frozen=True)
class CardOptions:
    """What the card of the weights shall say beside what the options say anyway.

    Parameters
    ----------
    licence
        Of the training data.
    attribution
        Whom the licence wants named.
    anatomies, contrasts
        What the data show.
    field_t
        Field strengths of the scanners.
    notes
        Whatever else a user should know.
    """

    licence: str | None = None
    attribution: str | None = None
    anatomies: tuple[str, ...] = ()
    contrasts: tuple[str, ...] = ()
    field_t: tuple[float, ...] = ()
    notes: str = ""


def train(argv: Sequence[str]) -> int:
    """``recon train``: parse `argv`, train, and leave weights behind.

    Returns
    -------
    int
        0; 130 after Ctrl-C, when the weights of the moment were kept.
    """
    given = parse(argv)
    folder = Path(given["output"])
    resume = _checkpoint(given["resume"])
    first = getattr(rank_zero_only, "rank", 0) == 0
    if first:  # the processes of a distributed training start as this one does
        _prepare_folder(folder, resume, given["force"])
    pl.seed_everything(given["data"].seed, workers=True, verbose=False)

    gan = systems.build(system_config(given))
    origin = _initialise(gan, given["init"])
    options: DataOptions = given["data"]
    if options.supervision == "self":
        gan = self_supervised(gan)
        options = as_volumes(options, folder / "volumes")
    data = make_data(options, gan.schedule.mask_per)
    trainer_options, update_options = _trainer_options(given)
    batch_size = options.batch_size or gan.schedule.batch_size
    per_epoch = gan.schedule.steps_per_epoch
    loaders = DataModule(data, batch_size, options.workers, options.seed, per_epoch and per_epoch * batches_per_step(gan))

    settings = ("training",) if given["trainer"]["overfit_batches"] else tuple(data.val)
    recorder = Recorder(settings) if data.split is None else HeldOutRecorder(settings)
    if options.plain:  # images in the units of the papers, on which their metrics are defined
        recorder.convention = CONVENTIONS.get(systems.find_systems()[given["system"]][given["preset"]].convention or "")
    module = GanModule(gan, update_options, recorder, split=data.split)
    card = _card(gan, options, data, batch_size, given["card"])
    card = replace(card, training={**card.training, **origin})
    trainer = make_trainer(folder, gan, trainer_options, card, has_validation=trainer_options["limit_val_batches"] != 0)
    module.n_steps = planned_steps(trainer, loaders, gan)
    if first:
        _save_options(folder, given)
    return _fit(trainer, module, loaders, folder, resume)


def _initialise(gan: Gan, name: str | None) -> dict[str, Any]:
    """Give the generator the weights `name`, and say for the card where they came from.

    Raises
    ------
    InputError
        If there are no such weights, or they are of another system or another generator.
    """
    if name is None:
        return {}
    path = find(name)
    card, state = read(path)
    if card.system not in (gan.config["system"], *gan.generator.begins_from):
        taken = _transfer(gan.generator, state, path)
        return {"init": card.name, "init_sha256": card.sha256, "init_share": round(taken, 3)}
    try:
        gan.generator.load_state_dict(gan.generator.adopted(state))
    except RuntimeError as error:
        raise InputError(
            f"the weights do not fit the generator ({' '.join(str(error).split())[:200]})",
            path,
            "leave the --generator options out",
        ) from error
    return {"init": card.name, "init_sha256": card.sha256}


def _transfer(generator: Generator, state: Mapping[str, Tensor], path: Path) -> float:
    """Give the generator of one system what it has in common with the weights of another: tensors of one name and shape.

    Returns
    -------
    float
        Share of the generator's parameters.

    Raises
    ------
    InputError
        If it is less than a third.
    """
    own = generator.state_dict()
    common = {name: x for name, x in state.items() if name in own and own[name].shape == x.shape}
    share = sum(x.numel() for x in common.values()) / sum(x.numel() for x in own.values())
    if share < LEAST_SHARE:
        raise InputError(
            f"only {100 * share:.0f} % of the parameters are also in these weights of another system",
            path,
            "choose weights of the same system, or --generator options that fit",
        )
    generator.load_state_dict(common, strict=False)
    print(f"{path.name}: {100 * share:.0f} % of the parameters are taken, the others begin anew", file=sys.stderr)
    return share


def _fit(trainer: pl.Trainer, module: GanModule, loaders: DataModule, folder: Path, resume: Path | None) -> int:
    keeper = next(callback for callback in trainer.callbacks if isinstance(callback, Keeper))  # type: ignore[attr-defined]
    module.recorder.gather = _gather if trainer.world_size > 1 else module.recorder.gather  # type: ignore[union-attr]
    try:
        # Only tensors and plain numbers are read from the checkpoint of one's own run.
        trainer.fit(module, loaders, ckpt_path=resume, weights_only=True)
        if keeper.validated[0] != module.step_count and trainer.enable_validation:  # `max_steps` came within an epoch
            trainer.validate(module, loaders, verbose=False)
    except Interrupted:
        if trainer.is_global_zero:
            print(
                f"interrupted after generator step {module.step_count}; go on with --resume {folder}\n{folder}/last.safetensors"
            )
        return INTERRUPTED
    except Diverged as error:
        good = folder / "best.safetensors"
        kept = f"the best weights before it are kept in {good}" if good.exists() else "no weights were kept yet"
        raise InputError(
            str(error), folder, f"{kept}; lower the learning rate (g_optimiser.lr.start), or clip gradients"
        ) from error
    if trainer.is_global_zero:
        print(f"{module.step_count} generator steps\n{folder}/best.safetensors\n{folder}/last.safetensors")
    return 0


# ---------------------------------------------------------------------------------------------------------------------------
# Options


def parser(system: str | None, preset: str, init: str | None = None) -> jsonargparse.ArgumentParser:
    """Every option, from the command line and from YAML files (``--config``, any number of them, the last one counting).

    The sections of a system (generator, losses, ...) are those of `system` and `preset`; None leaves them out, for a help text.
    The generator of the weights `init` is the default one.
    """
    import jsonargparse

    made = jsonargparse.ArgumentParser(
        prog="recon train",
        description="Train a system on fastMRI-style volumes, or on multi-coil scans simulated from images.",
        epilog="With --system NAME, --help also lists the options of that system. Not for diagnostic use.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    made.add_argument("--config", action="config", help="YAML file, or the name of a system; unknown keys are refused")
    made.add_argument("--system", type=str, required=True, help=f"one of {', '.join(systems.find_systems())}")
    made.add_argument("--preset", type=str, default="raw", help="raw, or published")
    for name, section in _sections(system, preset).items():
        made.add_class_arguments(type(section), name, instantiate=False)
        made.set_defaults({f"{name}.{key}": value for key, value in _leaves(asdict(section)).items()})
    if init is not None and system is not None:
        path = find(init)
        card = read_card(path)
        chosen = systems.find_systems()[system][preset]
        if card.preset != preset:
            raise InputError(
                f"these are weights of {card.system} {card.preset}, not of {system} {preset}", path, "choose others"
            )
        if card.system in (system, *chosen.generator.begins_from):
            known = {field.name for field in fields(chosen.options.generator)}
            shared = {key: value for key, value in card.config.get("generator", {}).items() if key in known}
            made.set_defaults({f"generator.{key}": value for key, value in _leaves(shared).items()})
    made.add_argument(
        "--init",
        type=str,
        default=None,
        help="start from weights: a bundled name, or a .safetensors file; its generator counts; a longer chain continues it; "
        "of another system, the tensors of the same names and shapes are taken",
    )
    made.add_argument("--output", "-o", type=Path, default=Path("run"), help="folder of the run")
    made.add_argument("--resume", type=Path, default=None, help="folder of a run, or a checkpoint of one's own, to go on with")
    made.add_argument("--force", "-f", action="store_true", help="write into a folder that holds another run")
    made.add_class_arguments(CardOptions, "card")
    made.add_class_arguments(DataOptions, "data")
    made.add_class_arguments(UpdateOptions, "update")
    made.add_class_arguments(pl.Trainer, "trainer", skip=set(OURS), instantiate=False)
    made.set_defaults(
        {"trainer.enable_model_summary": False, "trainer.num_sanity_val_steps": 0, "trainer.log_every_n_steps": 20}
    )
    return made


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """The options, objects of the trainer made; under ``plain`` all of them as plain data.

    Raises
    ------
    InputError
        If an option is unknown or has a wrong value.
    """
    import jsonargparse

    argv = with_paths(argv)
    made = parser(*_which(argv))
    try:
        found = made.parse_args(list(argv))
        plain = json.loads(json.dumps(found.as_dict(), default=str))
        instantiate = getattr(made, "instantiate", None) or made.instantiate_classes  # renamed in jsonargparse 4.49
        options: dict[str, Any] = instantiate(found).as_dict()
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        text = " ".join(str(error).split())
        raise InputError(text, fix=systems.renamed(text) or "recon train --help lists the options") from error
    return {**options, "plain": plain}


def system_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the options that `models.systems.build` understands."""
    names = _sections(given["system"], given["preset"])
    return {"system": given["system"], "preset": given["preset"], **{name: given["plain"][name] for name in names}}


def _which(argv: Sequence[str]) -> tuple[str | None, str, str | None]:
    """System, preset and first weights that the arguments mean: they decide which other options there are."""
    pre: dict[str, str | None] = {"system": None, "preset": "raw", "init": None}
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in pairwise(words):
        if option in ("--system", "--preset", "--init"):
            pre[option[2:]] = value
        if option == "--config":
            pre |= {k: str(entry) for k, entry in _read_yaml(Path(value)).items() if k in pre and entry is not None}
    return pre["system"], str(pre["preset"]), pre["init"]


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"the configuration cannot be read ({getattr(error, 'strerror', None) or error})", path) from error
    if not isinstance(found, dict):
        raise InputError("the configuration holds no options", path)
    return found


def _sections(system: str | None, preset: str) -> dict[str, Any]:
    """Default of every section of the system's configuration, by name."""
    if system is None:
        return {}
    systems.resolve({"system": system, "preset": preset})  # says so where there is no such system or preset
    return systems.find_systems()[system][preset].sections()


def _leaves(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted names."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def _trainer_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], UpdateOptions]:
    options, update = dict(given["trainer"]), given["update"]
    # Lightning clips gradients only where it moves the optimisers itself; here the module does both.
    value, kind = options.pop("gradient_clip_val"), options.pop("gradient_clip_algorithm")
    if value is not None:
        update = UpdateOptions(update.ema, float(value), str(getattr(kind, "value", kind) or update.clip_algorithm))
    if options["accumulate_grad_batches"] not in (None, 1):
        raise InputError(
            "gradients are not accumulated over batches", "--trainer.accumulate_grad_batches", "raise --data.batch_size"
        )
    options.pop("accumulate_grad_batches")
    devices, strategy = options["devices"], options["strategy"]
    if strategy in ("auto", "ddp") and (devices not in (1, "1", "auto") or options["num_nodes"] > 1):
        # Each move leaves the other network's parameters without a gradient.
        options["strategy"] = "ddp_find_unused_parameters_true"
    return options, update


def make_trainer(folder: Path, gan: Gan, options: Mapping[str, Any], card: Card, has_validation: bool = True) -> pl.Trainer:
    """The trainer, with the callbacks and loggers that every run has."""
    _quieten()
    options = dict(options)
    watch: dict[str, Any] = {"monitor": "val/gain_db", "mode": "max"} if has_validation else {}
    callbacks: list[Callback] = [Keeper(folder, card), Panels(folder / "panels"), RandomState(), StopOnSignal()]
    if options.get("enable_progress_bar") is not False:
        callbacks.append(TQDMProgressBar(refresh_rate=1 if sys.stderr.isatty() else 0))
    if options.get("enable_checkpointing") is not False:
        watch_best: dict[str, Any] = {**watch, "enable_version_counter": False, "save_on_train_epoch_end": False}
        callbacks.append(ModelCheckpoint(folder / "checkpoints", "best", save_last=True, **watch_best))
    if has_validation and gan.schedule.patience is not None:
        callbacks.append(EarlyStopping(patience=gan.schedule.patience, **watch))
    if options.get("max_epochs") is None and options.get("max_steps", -1) == -1:
        options["max_epochs"] = gan.schedule.max_epochs
    given = options.pop("callbacks", None) or []
    callbacks += given if isinstance(given, list) else [given]
    loggers = [CSVLogger(folder, "csv", flush_logs_every_n_steps=1), TensorBoardLogger(folder, "tensorboard")]
    made = pl.Trainer(
        **options, default_root_dir=folder, callbacks=callbacks, logger=loggers, use_distributed_sampler=False,
    )  # fmt: skip
    device = made.strategy.root_device
    if "bf16" in str(made.precision) and device.type == "cpu" and made.is_global_zero and not multiplies_bfloat16(device):
        print(f"recon: warning: --trainer.precision {made.precision}: {SLOW}; leave it out", file=sys.stderr, flush=True)
    return made


def planned_steps(trainer: pl.Trainer, loaders: DataModule, gan: Gan) -> int:
    """Generator steps of the whole training, which a cosine ends at."""
    if trainer.max_steps != -1:
        return trainer.max_steps
    batches: float = loaders.n_batches(trainer.world_size)
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    return int((trainer.max_epochs or 0) * batches // batches_per_step(gan))


# ---------------------------------------------------------------------------------------------------------------------------
# The folder of a run


def _prepare_folder(folder: Path, resume: Path | None, force: bool) -> None:
    if resume is None and (folder / "config.yaml").exists() and not force:
        raise InputError("the folder holds a run", folder, "choose another --output, go on with --resume, or give --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder of the run cannot be made ({error.strerror or error})", folder) from error


def _checkpoint(resume: Path | None) -> Path | None:
    if resume is None:
        return None
    path = resume / "checkpoints" / "last.ckpt" if resume.is_dir() else resume
    if not path.is_file():
        raise InputError("there is no checkpoint to go on with", path)
    return path


def _save_options(folder: Path, given: Mapping[str, Any]) -> None:
    """Everything that this run was told, as YAML that `--config` takes."""
    import yaml

    plain = {k: v for k, v in given["plain"].items() if k not in ("config", "resume", "force")}
    (folder / "config.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))


def _card(gan: Gan, options: DataOptions, data: DataSets, batch_size: int, says: CardOptions) -> Card:
    accelerations = [spec.acceleration for spec in map(MaskSpec.parse, options.masks) if spec.acceleration is not None]
    given = {key: value for key, value in asdict(says).items() if value}
    # What is named several times, to be drawn more often, is one thing to a reader of the card.
    summary = {key: list(dict.fromkeys(value)) if key in ("masks", "coils") else value for key, value in data.summary.items()}
    envelope: dict[str, Any] = {
        "masks": summary["masks"],
        "acceleration": [min(accelerations), max(accelerations)] if accelerations else [],
        **{key: summary[key] for key in ("coils", "snr", "matrix") if key in summary},
        **{key: given[key] for key in ("anatomies", "contrasts", "field_t") if key in given},
    }
    if gan.generator.fitted:  # trained on images: no sampling and no coils are known to it
        envelope = {key: value for key, value in envelope.items() if key not in ("masks", "acceleration", "coils")}
    about = {**summary, "source": Path(str(summary["source"])).name}
    about |= {key: given[key] for key in ("licence", "attribution") if key in given}
    training = {"batch_size": batch_size, "seed": options.seed, "strip": options.strip}
    config, envelope, about = json.loads(json.dumps([dict(gan.config), envelope, about]))  # lists, as a file holds them
    return Card("", config, envelope, about, training, notes=says.notes)


# ---------------------------------------------------------------------------------------------------------------------------
# Machine


def _gather(found: list[Any]) -> list[Any]:
    if not torch.distributed.is_initialized():
        return found
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, found)
    return [item for part in parts for item in part]


def _quieten() -> None:
    """Lightning speaks as loudly as the rest, and gives no advice that does not hold here."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.getLogger().level)
    known = (
        "does not have many workers",
        "number of training batches",
        "in eval mode",
        "The dirpath has changed",
        "is not empty",
        "resuming from a checkpoint",
    )
    for text in (f".*{words}.*" for words in known):
        warnings.filterwarnings("ignore", text)
