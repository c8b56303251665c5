"""Exception for errors that the user can correct."""

from __future__ import annotations

from os import PathLike


class InputError(ValueError):
    """Unusable input, reported as one line ``WHERE: what; fix``; the command line exits with status 2.

    Parameters
    ----------
    what
        What was expected and what was found ("readout 17 has 12 channels, the header says 14").
    where
        File, option or argument at fault; None if there is none.
    fix
        Suggested remedy ("give --noise FILE, or --no-whiten").
    """

    def __init__(self, what: str, where: str | PathLike[str] | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        place = f"{where}: " if where is not None else ""
        remedy = f"; {fix}" if fix else ""
        super().__init__(" ".join(f"{place}{what}{remedy}".split()))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str | PathLike[str] | None, str | None]]:
        # Data loader workers pickle their errors; the default would pass the complete message as `what`.
        return type(self), (self.what, self.where, self.fix)
