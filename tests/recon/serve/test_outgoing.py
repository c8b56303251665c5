"""Images on their way to a scanner, read by the ISMRMRD library's own protocol reader."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ProtocolDeserializer, ProtocolSerializer

from kspace.container import Image, ImageIndex
from kspace.io.mrd import sending
from kspace.io.mrd.images import read_images
from kspace.io.mrd.write import Space, header_xml
from recon.output.export import export
from recon.run.options import RunOptions
from recon.run.pipeline import Result
from recon.serve.interface import OutgoingState
from recon.serve.outgoing import frame_remarks, messages
from tests.support.exports import make_image, make_record

SCANNER = RunOptions(mrd_pixels="uint16")
GENERATED = make_record(method="refinegan", generated=True, description="refinegan generator")


def xml(nz: int = 1, **limits: int) -> str:
    stated = {name: (0, n - 1, 0) for name, n in limits.items()}
    return header_xml([Space((48, 40, nz), (48, 40, nz), (0.12, 0.12, 0.005), (0.12, 0.12, 0.005), stated)])


def slices(n: int, role: str = "main", gain: complex = 1.0, repetition: int = 0) -> list[Image]:
    return [
        make_image(
            position_mm=(0, 0, 5.0 * s), index=ImageIndex(slice=s, repetition=repetition), gain=gain * (1 + 0.1 * s), role=role
        )
        for s in range(n)
    ]


def read(stream: Iterable[bytes]) -> list[object]:
    return list(ProtocolDeserializer(io.BytesIO(b"".join([*stream, sending.close()]))).deserialize())


def send(
    parts: Sequence[Sequence[Image]], header: str, options: RunOptions = SCANNER, **state: object
) -> tuple[list[object], OutgoingState]:
    """What a client gets of a scan that is reconstructed part by part, the state travelling as JSON in between."""
    kept, found = OutgoingState(**state), []  # type: ignore[arg-type]
    for images in parts:
        record = GENERATED if any(image.role == "sense" for image in images) else make_record()
        found += read(messages([Result("scan", list(images), record)], header, options, kept))
        kept = replace(kept, kept=json.loads(json.dumps(kept.kept)))
    return found, kept


def only_images(found: Iterable[object]) -> list[ismrmrd.Image]:
    return [one for one in found if isinstance(one, ismrmrd.Image)]


def test_the_bytes_are_those_that_the_ismrmrd_library_writes() -> None:
    images = slices(2, gain=1 + 1j)
    for options in (SCANNER, RunOptions(mrd_pixels="float32"), RunOptions(mrd_pixels="float32", complex=True)):
        sent = b"".join(messages([Result("scan", images, make_record())], xml(slice=2), options, OutgoingState()))
        again = io.BytesIO()
        writer = ProtocolSerializer(again)
        for image in read([sent]):
            writer.serialize(image)
        assert sent == again.getvalue()[: len(sent)]
        assert len(again.getvalue()) - len(sent) in (0, 2)  # CLOSE


def test_pixels_and_meta_are_those_of_recon_run(tmp_path: Path) -> None:
    images = [*slices(3, gain=1 + 1j), *slices(3, "sense", 1 + 1j)]
    export(images, GENERATED, tmp_path, "scan", ("mrd",), mrd_pixels="uint16")
    written = [*read_images(tmp_path / "scan.mrd.h5"), *read_images(tmp_path / "scan_sense.mrd.h5")]
    sent = only_images(send([images], xml(slice=3))[0])
    assert len(sent) == len(written) == 6
    ours = {"RescaleSlope", "RescaleIntercept", "IntensitySlope", "IntensityIntercept"}
    ours |= {"SeriesInstanceUID", "SeriesNumberRangeNameUID"}
    for one, stored in zip(sent, written, strict=True):
        np.testing.assert_array_equal(one.data[0], stored.image.data.numpy())
        assert (one.image_series_index, one.image_index) == (stored.series, stored.number)
        assert {k: v for k, v in one.meta.items() if k not in ours} == {k: v for k, v in stored.meta.items() if k not in ours}
        assert float(one.meta["IntensitySlope"]) == float(stored.meta["RescaleSlope"])


def test_pixels_are_integers_with_slope_one_and_integer_windows() -> None:
    for one in only_images(send([slices(3)], xml(slice=3))[0]):
        assert one.data.dtype == np.uint16
        assert one.data.max() <= 4095
        assert (one.meta["RescaleSlope"], one.meta["RescaleIntercept"]) == ("1", "0")
        assert one.meta["WindowCenter"].isdecimal()
        assert int(one.meta["WindowWidth"]) > 100
    assert max(one.data.max() for one in only_images(send([slices(3)], xml(slice=3))[0])) == 4095


@pytest.mark.parametrize("classical_first", [False, True])
def test_order_and_everything_that_names_a_series(classical_first: bool) -> None:
    images = [*slices(2), *slices(2, "sense")]
    found, _ = send([images], xml(slice=2), classical_first=classical_first)
    sent = only_images(found)
    methods = [one.meta["ImageProcessingHistory"] for one in sent]
    generated = ["trained generator" in m for m in methods]
    assert generated == ([False, False, True, True] if classical_first else [True, True, False, False])
    assert [one.image_series_index for one in sent] == [1, 1, 2, 2]
    assert [one.image_index for one in sent] == [1, 2, 1, 2]
    names = "SeriesInstanceUID", "SeriesNumberRangeNameUID", "SeriesDescription", "SeriesDescriptionAdditional"
    for name in names:
        of = [one.meta[name] for one in sent]
        assert of[0] == of[1] != of[2] == of[3], name
    assert all("NOT FOR DIAGNOSTIC USE" in one.meta["SeriesDescription"] for one in sent)


def test_maps_of_the_evidence_come_last_and_signed_ones_keep_their_zero() -> None:
    signed = [replace(one, data=one.data - 0.3) for one in slices(2, "difference")]
    found, _ = send([[*slices(2), *signed, *slices(2, "sense")]], xml(slice=2))
    sent = only_images(found)
    assert [one.image_series_index for one in sent] == [1, 1, 2, 2, 3, 3]
    assert "difference" in sent[4].meta["SeriesDescription"]
    assert "trained generator" not in sent[2].meta["ImageProcessingHistory"]
    assert {one.meta["RescaleIntercept"] for one in sent} == {"0"}
    intercept, slope = (float(sent[4].meta[name]) for name in ("IntensityIntercept", "IntensitySlope"))
    assert intercept < 0
    values = sent[4].data[0] * slope + intercept
    np.testing.assert_allclose(values, signed[0].data.numpy(), atol=0.51 * slope)


def test_slices_keep_the_geometry_of_their_source_and_a_slab_is_a_new_volume() -> None:
    one = only_images(send([slices(3)], xml(slice=3))[0])[2]
    assert (one.meta["Keep_image_geometry"], one.image_index, one.slice) == ("1", 3, 2)
    assert tuple(one.position) == (0, 0, 10)
    slab = make_image((8, 40, 48), (120.0, 120.0, 40.0), (1.0, 2.0, 3.0), index=ImageIndex(slice=1))
    (volume,) = only_images(send([[slab]], xml(8, slice=1))[0])
    assert (volume.meta["Keep_image_geometry"], volume.image_index, volume.slice) == ("0", 1, 0)
    # The position is the slab's, and the middle of its eight slices up to the half voxel of an even matrix.
    assert tuple(volume.position) == (1, 2, 3)
    heights = 3.0 + (np.arange(8) - 4) * 5.0
    assert abs(heights.mean() - volume.position[2]) <= 2.5
    assert volume.data.shape == (1, 8, 40, 48)


def test_parts_of_a_scan_give_one_series_with_places_in_space() -> None:
    whole = [image for r in range(2) for image in slices(4, repetition=r)]
    parts = [[whole[i]] for i in (5, 0, 2, 7, 1, 3, 6, 4)]
    found, state = send(parts, xml(slice=4, repetition=2))
    sent = only_images(found)
    assert [one.image_index for one in sent] == [6, 1, 3, 8, 2, 4, 7, 5]
    assert len({(one.image_series_index, one.meta["SeriesInstanceUID"], one.meta["IntensitySlope"]) for one in sent}) == 1
    widths = [int(one.meta["WindowWidth"]) for one in sent]
    assert widths == sorted(widths)
    assert frame_remarks(state) == []
    for one, (image,) in zip(sent, parts, strict=True):
        slope = float(one.meta["IntensitySlope"])
        np.testing.assert_allclose(one.data[0] * slope, image.data.numpy(), atol=0.51 * slope)


def test_an_image_that_exceeds_the_scale_is_not_clipped() -> None:
    parts = [slices(1, gain=1e-6), slices(2, gain=1e-5)[1:]]
    found, _ = send(parts, xml(slice=2))
    first, text, second = found
    assert isinstance(text, str)
    assert text.startswith("WARNING series 1, image 2: brighter")
    assert isinstance(first, ismrmrd.Image)
    assert isinstance(second, ismrmrd.Image)
    gain = int(second.meta["RescaleSlope"])
    assert gain in (4, 8)
    assert second.data.max() < 4095
    slope = float(second.meta["IntensitySlope"])
    np.testing.assert_allclose(second.data[0] * slope, parts[1][0].data.numpy(), atol=0.51 * slope)
    assert slope == pytest.approx(gain * float(first.meta["IntensitySlope"]))


def test_the_window_widens_as_brighter_slices_come() -> None:
    parts = [[make_image(index=ImageIndex(slice=s), gain=gain)] for s, gain in enumerate((1.0, 2.0, 1.0))]
    widths = [int(one.meta["WindowWidth"]) for one in only_images(send(parts, xml(slice=3))[0])]
    assert widths[1] == widths[2] == pytest.approx(2 * widths[0], abs=2)


def test_a_blank_first_slice_does_not_choose_the_scale() -> None:
    blank = make_image(gain=0.0)
    sent = only_images(send([[blank], slices(2, gain=1e-7)[1:]], xml(slice=2))[0])
    assert not sent[0].data.any()
    assert sent[1].data.max() == 4095


def test_frames_are_compared_with_the_protocol() -> None:
    _, state = send([slices(3)], xml(slice=5))
    assert frame_remarks(state) == ["series 1 (main) has 3 images, the protocol announces 5"]
    _, state = send([slices(3)], xml(slice=5), replace(SCANNER, slices="0-2"))
    assert frame_remarks(state) == []
    slab = make_image((6, 40, 48), (120.0, 120.0, 40.0))
    _, state = send([[slab]], xml(8, slice=1))
    assert frame_remarks(state) == ["series 1 (main) has 6 slices per slab, the protocol announces 8"]


def test_without_limits_images_are_counted_as_they_come() -> None:
    found, state = send([slices(2)[1:], slices(1)], "Dummy XML header")
    assert [one.image_index for one in only_images(found)] == [1, 2]
    assert frame_remarks(state) == []


def test_images_beyond_the_limits_get_numbers_of_their_own() -> None:
    found, state = send([slices(4)[::-1]], xml(slice=2))
    assert sorted(one.image_index for one in only_images(found)) == [1, 2, 3, 4]
    assert frame_remarks(state) == ["series 1 (main) has 4 images, the protocol announces 2"]


def test_contrasts_of_one_part_are_named_where_the_header_announces_several() -> None:
    parts = [[make_image(index=ImageIndex(contrast=c))] for c in range(2)]
    sent = only_images(send(parts, xml(slice=1, contrast=2))[0])
    assert [one.image_series_index for one in sent] == [1, 2]
    assert [one.meta["SeriesDescription"].split()[0] for one in sent] == ["C1", "C2"]


def test_remarks_go_into_the_comment() -> None:
    (one,) = only_images(send([slices(1)], xml(slice=1), remarks=("there is no configuration 'x'",))[0])
    assert one.meta["ImageComment"] == one.meta["ImageComments"]
    assert one.meta["ImageComment"].endswith("sense; there is no configuration 'x'")
