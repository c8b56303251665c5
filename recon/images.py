"""Reconstructed images in Python: a sequence of `Image` that knows its records and can be saved as the command saves them."""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from kspace.container import Image
from kspace.errors import InputError
from recon.evidence.record import ROLES
from recon.run.input import Source
from recon.run.options import RunOptions, checked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from recon.run.pipeline import Result


class ReconWarning(UserWarning):
    """What a person has to know about a reconstruction: also in `Images.warnings` and in the JSON record."""


class Images(Sequence[Image]):
    """Reconstructed images of a scan: a sequence of `Image`, in order of volume, then slice.

    ``images[0].numpy()`` has the pixels, ``images[0].header`` and ``images[0].geometry`` what belongs to them.
    """

    def __init__(self, results: Sequence[Result], source: Source, options: RunOptions) -> None:
        self._results, self._source, self._options = tuple(results), source, options
        everything = [image for result in self._results for image in result.images]
        self._main = tuple(image for image in everything if image.role == "main")
        self._beside = tuple(image for image in everything if image.role != "main")

    @property
    def method(self) -> str:
        """Name of the reconstruction."""
        return self._options.method

    @property
    def generated(self) -> bool:
        """Whether a trained generator made the images."""
        return any(result.record.generated for result in self._results)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person has to know about the images."""
        return tuple(dict.fromkeys(message for result in self._results for message in result.record.warnings))

    @property
    def records(self) -> tuple[dict[str, Any], ...]:
        """Per encoding: method, parameters, versions, checksum of the raw file, masks, seconds and warnings."""
        return tuple(asdict(result.record) for result in self._results)

    @property
    def beside(self) -> tuple[Image, ...]:
        """Classical images of the same data that go with generated ones, in the same order; empty for a classical method."""
        return tuple(image for image in self._beside if image.role not in ROLES)

    @property
    def maps(self) -> tuple[Image, ...]:
        """Maps of the evidence of generated images, roles ``prior``, ``difference`` and ``std``; see docs/TRUST.md."""
        return tuple(image for image in self._beside if image.role in ROLES)

    def numpy(self) -> NDArray[np.complex64 | np.float32]:
        """All images in one array ``(image y x)``, or ``(image z y x)`` of slabs.

        Raises
        ------
        InputError
            If the images differ in matrix.
        """
        import numpy as np

        arrays = [image.numpy() for image in self]
        if len({array.shape for array in arrays}) > 1:
            raise InputError("the images differ in matrix", self._source.path, "take them one by one")
        return np.stack(arrays)

    def save(
        self,
        output: str | PathLike[str],
        formats: Sequence[str] | None = None,
        *,
        complex: bool = False,
        mrd_pixels: Literal["float32", "uint16"] = "float32",
        force: bool = False,
    ) -> list[Path]:
        """Write the images and their JSON record as ``recon run`` does: all files of an encoding appear together, or none.

        Parameters
        ----------
        output
            Folder, made where it does not exist.
        formats
            Of ``mrd``, ``dicom``, ``nifti``, ``png``, ``html``, ``fastmri``; None: those of ``recon run``.
        complex
            Complex values into MRD and NIfTI, instead of magnitudes.
        mrd_pixels
            How MRD files store magnitudes.
        force
            Replace outputs of the same names.

        Returns
        -------
        list of Path
            What was written.

        Raises
        ------
        InputError
            If an output exists and `force` is not given, a format is unknown, or the folder cannot be written.
        """
        from recon.run.pipeline import check_room, choose_method, formats_of, save_results

        chosen = formats if formats is None or isinstance(formats, str) else ",".join(formats)
        options = checked(replace(self._options, format=chosen, complex=complex, mrd_pixels=mrd_pixels, force=force))
        if complex:
            choose_method(options)  # refuses it for magnitudes
        roles = ("main", *dict.fromkeys(image.role for image in self._beside))
        check_room(self._source, Path(output), options, roles)
        said: list[str] = []
        stated = {"format": ",".join(formats_of(self._source, options)), "complex": complex, "mrd_pixels": mrd_pixels}
        results = [_restated(result, stated) for result in self._results]
        written = save_results(results, self._source, Path(output), options, said.append)
        for message in said:
            warnings.warn(message, ReconWarning, stacklevel=2)
        return written

    @overload
    def __getitem__(self, item: int) -> Image: ...
    @overload
    def __getitem__(self, item: slice) -> tuple[Image, ...]: ...
    def __getitem__(self, item: int | slice) -> Image | tuple[Image, ...]:
        return self._main[item]

    def __len__(self) -> int:
        return len(self._main)

    def __iter__(self) -> Iterator[Image]:
        return iter(self._main)

    def __repr__(self) -> str:
        return f"<Images {', '.join(self._facts().values())}>"

    def _repr_html_(self) -> str:
        return facts_table("images", self._facts() | {"warnings": "\n".join(self.warnings)})

    def _facts(self) -> dict[str, str]:
        shapes = sorted({" x ".join(map(str, image.numpy().shape[::-1])) for image in self})
        said = f"{len(self.warnings)} warning{'s' * (len(self.warnings) != 1)}"
        return {
            "source": self._source.path.name,
            "method": self.method + (" (trained generator)" if self.generated else ""),
            "images": f"{len(self)} of {' and '.join(shapes)}",
            "said": said,
            "notice": "NOT FOR DIAGNOSTIC USE",
        }


def upright(image: Image, z: int | None = None) -> NDArray[np.float32]:
    """Magnitude of an image, float32, oriented as radiologists view it: anterior up, the patient's right on the left.

    Parameters
    ----------
    image
        Of a scan.
    z
        Plane of a slab; None: the middle one.
    """
    from recon.output.png import view_of

    plane = image.data[image.data.shape[0] // 2 if z is None else z].abs()
    return view_of(image.geometry).apply(plane.detach().cpu().float().numpy())


def _restated(result: Result, parameters: dict[str, Any]) -> Result:
    record = replace(result.record, parameters=result.record.parameters | parameters)
    return replace(result, record=record)


def facts_table(title: str, facts: dict[str, str]) -> str:
    """HTML table of names and values, escaped; empty values are left out."""
    cells = (
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value).replace(chr(10), '<br>')}</td></tr>"
        for name, value in facts.items()
        if value
    )
    return f"<table><caption>{html.escape(title)}</caption>{''.join(cells)}</table>"
