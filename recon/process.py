"""The process of a command: a child that works, a parent that reports; signals, crashes and lack of memory in words."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable
from types import FrameType

EXIT_INPUT_ERROR = 2
EXIT_BUG = 1
TOLD = 100  # added by the child to its exit status once it has said what there is to say
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGINT, signal.SIGTERM)
# What libraries say that do not raise MemoryError; the last two are the dynamic linker's, while it loads PyTorch.
MEMORY_WORDS = ("not enough memory", "out of memory", "cannot allocate memory", "failed to map segment")
LESS_MEMORY = "take a part with --slices or --repetitions, fewer coils with --virtual-coils, or a machine with more memory"
SPARE_BYTES = 64 << 20  # who cannot have this much more fails for lack of it, whatever the library that failed says


class Stopped(KeyboardInterrupt):
    """A signal that asks to stop: what is being written is cleaned away on the way out, as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def run_in_child(command: Callable[[], int]) -> int:
    """Run `command` in a child process; pass signals on, and put a death of the child into words.

    A damaged file can make the HDF5 library crash the interpreter, and a large one can make the kernel kill it. The parent,
    which has imported nothing and read nothing, turns both into the one-line error that a person can act on.

    Parameters
    ----------
    command
        Returns the exit status.

    Returns
    -------
    int
        Exit status of the command; 2 where the child crashed or was killed; 128 + number of any other signal.
    """
    if not hasattr(os, "fork"):
        return command()
    sys.stdout.flush()
    # A signal between the fork and the handlers would end one of the two with a traceback: it waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    child = os.fork()
    if child == 0:
        code = 0
        try:
            _stop_once()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            code = TOLD + command()
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output has left, as `recon info scan.h5 | head` does
            code = TOLD
        finally:
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os._exit(code)
    return _wait(child)


def _stop_once() -> None:
    """Let the first signal to stop end the command in order, and ignore more of them: the cleaning up must not be cut short."""
    command = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != command:  # a worker process, which inherited this: it ends as others expect it to
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for other in STOPPING:
            signal.signal(other, signal.SIG_IGN)
        raise Stopped(number)

    for number in STOPPING:
        signal.signal(number, stop)


def _wait(child: int) -> int:
    """Wait for the child, pass signals on, and turn a death by signal into words."""

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in STOPPING:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        code = os.WEXITSTATUS(status) - TOLD
        if code >= 0:
            return code
        # Whatever goes wrong is told, unless no memory is left to tell it, or a library ends the process for want of some.
        print_error(out_of_memory("too little even to say where"))
        return EXIT_INPUT_ERROR
    died_of = os.WTERMSIG(status)
    if died_of == signal.SIGKILL:
        # Only the system's log knows who did it.
        print_error(f"the process was killed{_where()}, as the system does when memory runs out; {LESS_MEMORY}")
        return EXIT_INPUT_ERROR
    if died_of in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL):
        name = signal.Signals(died_of).name
        files = f" ({_given()})" if _given() else ""
        print_error(
            f"the process crashed ({name}): an input file is probably damaged{files}, unless memory ran out; copy it again"
        )
        return EXIT_INPUT_ERROR
    return 128 + died_of


def _given() -> str:
    """The files that the command was given, for messages of those who know no better which of them it was."""
    files = [argument for argument in sys.argv[1:] if os.path.isfile(argument)]
    return ", ".join([*files[:3], *["..."][: max(0, len(files) - 3)]])


def memory_is_used_up() -> bool:
    """Whether `SPARE_BYTES` cannot be had: extensions that never look whether they got memory fail with all kinds of words."""
    try:
        bytearray(SPARE_BYTES)
    except MemoryError:
        return True
    return False


def out_of_memory(detail: str) -> str:
    asked = re.search(r"tried to allocate (\d+) bytes", detail)  # PyTorch's, behind a line of its source code
    detail = f"{int(asked[1]) / 2**20:.0f} MiB were asked for" if asked else " ".join(detail.split())[:160]
    return f"out of memory ({detail or 'allocation failed'}){_where()}; {LESS_MEMORY}"


def _where() -> str:
    return f" in {_given()}" if _given() else ""


def print_error(message: str) -> None:
    print(f"recon: error: {message}", file=sys.stderr, flush=True)
