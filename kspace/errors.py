"""The exception for everything that a user can mend."""

from __future__ import annotations

from os import PathLike


class InputError(ValueError):
    """Unusable input, as one line ``WHERE: what; fix``. The command line prints it and exits with status 2.

    Parameters
    ----------
    what
        What is wrong: what was expected and what came ("readout 17 has 12 channels, the header says 14").
    where
        The file, option or argument at fault; None where there is none.
    fix
        The nearest remedy ("give --noise FILE, or --no-whiten").
    """

    def __init__(self, what: str, where: str | PathLike[str] | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        place = f"{where}: " if where is not None else ""
        remedy = f"; {fix}" if fix else ""
        super().__init__(" ".join(f"{place}{what}{remedy}".split()))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str | PathLike[str] | None, str | None]]:
        # Errors cross process boundaries (data loader workers), and the default would pass the joined text as `what`.
        return type(self), (self.what, self.where, self.fix)
