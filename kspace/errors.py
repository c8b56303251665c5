"""The one exception that users are meant to read."""

from __future__ import annotations

from os import PathLike


class InputError(ValueError):
    """Something that a person gave us cannot be used. The command line prints it as one line and exits with status 2.

    Parameters
    ----------
    what
        What is wrong: what was expected and what came ("readout 17 has 12 channels, the header says 14").
    where
        The file, option or argument that it is wrong in; None where there is none.
    fix
        The nearest thing to do about it ("give --noise FILE, or --no-whiten").
    """

    def __init__(self, what: str, where: str | PathLike[str] | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        place = f" in {where}" if where is not None else ""
        remedy = f"; {fix}" if fix else ""
        super().__init__(" ".join(f"{what}{place}{remedy}".split()))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str | PathLike[str] | None, str | None]]:
        # Errors cross process boundaries (data loader workers), and the default would pass the joined text as `what`.
        return type(self), (self.what, self.where, self.fix)
