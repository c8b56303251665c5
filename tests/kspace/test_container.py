from __future__ import annotations

import pickle

import pytest
import torch

from kspace.container import Header, Image, ImageIndex, KSpace
from kspace.errors import InputError


def some() -> KSpace:
    return KSpace(torch.zeros(3, 4, 6, 5, dtype=torch.complex64), torch.ones(6, 1, dtype=torch.bool), Header(source="scan.h5"))


def test_a_step_is_recorded_and_refused_if_repeated() -> None:
    whitened = some().after("whiten", header={"noise_std": 1.0}, data=some().data + 1)
    assert whitened.header.steps == ("whiten",)
    assert whitened.header.noise_std == 1.0
    assert some().header.noise_std is None
    assert whitened.data.real.min() == 1
    with pytest.raises(InputError, match=r"scan.h5: step 'whiten' was already applied \(steps: whiten\)"):
        whitened.after("whiten")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": torch.zeros(4, 6, 5)}, "k-space must be complex"),
        ({"data": torch.zeros(6, 5, dtype=torch.complex64)}, "k-space must be complex"),
        ({"mask": torch.ones(6, 1)}, "mask must be bool"),
        ({"mask": torch.ones(7, 1, dtype=torch.bool)}, r"mask of shape \(7, 1\) does not broadcast"),
        ({"mask": torch.ones(2, 3, 4, 6, 5, dtype=torch.bool)}, "does not broadcast"),
        ({"n_averages": torch.ones(6, 1)}, "n_averages must be integer"),
        ({"n_averages": torch.ones(6, 5, dtype=torch.int32)}, r"must have the mask's shape \(6, 1\)"),
        ({"calibration": torch.zeros(4, 6, 5, dtype=torch.complex64)}, "must have the data's shape"),
    ],
)
def test_inconsistent_fields_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        some().after("change", **change)


def test_images_are_ordered_repetition_fastest() -> None:
    a, b, c = ImageIndex(repetition=1), ImageIndex(phase=1), ImageIndex(contrast=1)
    assert sorted([c, b, a, ImageIndex()]) == [ImageIndex(), a, b, c]


def test_an_image_has_three_axes() -> None:
    with pytest.raises(ValueError, match=r"\(z y x\)"):
        Image(torch.zeros(4, 4), Header())


def test_errors_survive_pickling_between_processes() -> None:
    error = InputError("12 channels,\n expected 14", "a.h5", "copy it again")
    assert str(error) == "a.h5: 12 channels, expected 14; copy it again"
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes; data loader workers send errors so
    assert (str(again), again.where) == (str(error), "a.h5")
