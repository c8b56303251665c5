"""The picture: turned as radiologists look, in true proportions, on one grey scale."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from kspace.container import ImageIndex
from recon.output import png
from recon.output.export import export
from recon.output.geometry import axes_of
from recon.output.png import MAX_TILES, choose_tiles, direction, view_of, write_montage
from tests.support.exports import make_image, make_record, rotation

# Rightwards and downwards on the screen, in LPS, as radiologists expect it.
EXPECTED = {
    "axial": ((1, 0, 0), (0, 1, 0), ("R", "L", "A", "P")),
    "coronal": ((1, 0, 0), (0, 0, -1), ("R", "L", "H", "F")),
    "sagittal": ((0, 1, 0), (0, 0, -1), ("A", "P", "H", "F")),
}
SIGNED_PERMUTATIONS = [np.eye(3)[:, order] * signs for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


@pytest.mark.parametrize("axes", SIGNED_PERMUTATIONS)
def test_every_orientation_is_turned_to_the_radiological_one(axes: np.ndarray) -> None:
    image = make_image((1, 5, 7), axes=axes)
    view = view_of(image.header.geometry)
    y, x = np.indices((5, 7))
    places = (x[..., None] * axes[:, 0] + y[..., None] * axes[:, 1]).astype(float)
    shown = np.stack([view.apply(places[..., i]) for i in range(3)], -1)
    right, down, letters = EXPECTED[view.plane]
    np.testing.assert_array_equal(shown[0, 1] - shown[0, 0], right)
    np.testing.assert_array_equal(shown[1, 0] - shown[0, 0], down)
    assert view.letters == letters
    assert abs(axes_of(image.header.geometry)[:, 2] @ np.cross(right, down)) == 1


def test_oblique_slices_get_the_nearest_view_and_two_letters() -> None:
    view = view_of(make_image(axes=rotation(0, 0, 30)).header.geometry)
    assert (view.plane, view.letters) == ("axial", ("RA", "LP", "AL", "PR"))
    assert view_of(make_image(axes=rotation(30, 0, 0)).header.geometry).letters == ("R", "L", "AF", "PH")
    assert view_of(make_image(axes=rotation(10, 0, 0)).header.geometry).letters == ("R", "L", "A", "P")
    assert direction(np.array([0.6, -0.8, 0])) == "AL"


def test_the_patients_right_is_on_the_left_of_the_picture(tmp_path: Path) -> None:
    # A read direction towards the patient's right, and phase towards the front: both have to be flipped.
    image = make_image((1, 60, 60), axes=rotation(0, 0, 180), gain=0)
    image.data[0, 50, 45] = 1  # right of the centre (x = -30 mm), in front of it (y = -40 mm)
    write_montage(tmp_path / "a.png", [image], make_record())
    row, column = _brightest_block(tmp_path / "a.png")
    assert row == pytest.approx(1 / 2 - 40 / 120, abs=0.03)
    assert column == pytest.approx(1 / 2 - 30 / 120, abs=0.03)


def test_pixels_that_are_not_square_keep_their_proportions(tmp_path: Path) -> None:
    image = make_image((1, 64, 32), fov_mm=(200, 100, 5))
    tile = png._tile(image, 0, 0, 1)
    assert tile.size[0] == 2 * tile.size[1]
    turned = png._tile(make_image((1, 64, 32), (200, 100, 5), axes=rotation(0, 0, 90)), 0, 0, 1)
    assert turned.size[1] == 2 * turned.size[0]


def test_all_tiles_have_one_grey_scale(tmp_path: Path) -> None:
    flat = [make_image((1, 30, 30), gain=0, index=ImageIndex(slice=s), position_mm=(0, 0, 5 * s)) for s in range(2)]
    flat[0].data[:], flat[1].data[:] = 1.0, 0.25
    write_montage(tmp_path / "a.png", flat, make_record())
    greys, counts = np.unique(np.asarray(Picture.open(tmp_path / "a.png")), return_counts=True)
    assert {255, 64} <= set(greys[counts > 10_000].tolist())


def test_many_slices_are_thinned_evenly() -> None:
    images = [
        make_image((1, 4, 4), index=ImageIndex(slice=s, repetition=r), position_mm=(0, 0, 5 * s))
        for s in range(30)
        for r in range(40)
    ]
    chosen, n_slices, n_volumes = choose_tiles(images)
    assert (n_slices, n_volumes) == (30, 40)
    assert len(chosen) <= MAX_TILES
    assert len({i.header.index.repetition for i, _, _ in chosen}) == 4
    assert len(choose_tiles([make_image((200, 4, 4), (9, 9, 9))])[0]) == MAX_TILES
    assert len(choose_tiles(images[:1])[0]) == 1


def test_labels_are_the_numbers_that_the_command_line_takes() -> None:
    # The slices 7, 5 and 3 of a file, in the order in which they lie; repetitions 2 and 4.
    images = [
        make_image((1, 4, 4), index=ImageIndex(slice=s, repetition=r), position_mm=(0, 0, -5 * s))
        for s in (3, 5, 7)
        for r in (2, 4)
    ]
    labels = [label for _, _, label in choose_tiles(images)[0]]
    assert labels == ["7 / 2", "5 / 2", "3 / 2", "7 / 4", "5 / 4", "3 / 4"]
    assert "label: slice / repetition, counted from 0" in png._caption(images, make_record(), (0, 1), 6, 6)[1]
    for image, _, label in choose_tiles(images[::2])[0]:
        assert label == str(image.header.index.slice)
    slab = [make_image((3, 4, 4), (9, 9, 9))]
    assert [label for _, _, label in choose_tiles(slab)[0]] == ["0", "1", "2"]
    assert "label: z, counted from 0" in png._caption(slab, make_record(), (0, 1), 3, 3)[1]


def test_marks_travel_inside_the_file(tmp_path: Path) -> None:
    export([make_image(nominal=True)], make_record(method="tv"), tmp_path, "scan", ("png",))
    with Picture.open(tmp_path / "scan.png") as picture:
        assert picture.text["Description"] == "NOT FOR DIAGNOSTIC USE; tv; SENSE of a phantom"


def test_the_caption_says_what_was_left_out_and_what_is_only_assumed() -> None:
    images = [make_image(nominal=True)]
    title, line = png._caption(images, make_record(generated=True), (0, 2), 3, 40)
    assert title == "scan.h5 · sense (trained generator)"
    assert (
        line
        == "axial · grey scale 0 to 2 (99.5th percentile) · label: slice, counted from 0 · 3 of 40 shown · directions nominal"
    )
    assert png._letters(images[0].header.geometry) == ("", "", "", "")


def _brightest_block(path: Path) -> tuple[float, float]:
    """Centre of the bright spot, as fractions of the only tile's height and width."""
    picture = np.asarray(Picture.open(path)).astype(float)
    tile = picture[png.GAP : png.GAP + png.TILE, png.GAP : png.GAP + png.TILE]
    inner = tile[60:-60, 60:-60]  # without the letters
    rows, columns = np.nonzero(inner > 0.5 * inner.max())
    return (rows.mean() + 60) / png.TILE, (columns.mean() + 60) / png.TILE
