"""Child process of a command: forwards signals, and reports crashes and out-of-memory failures as one-line errors."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType

EXIT_INPUT_ERROR = 2
EXIT_BUG = 1
TOLD = 100  # offset of the child's exit status once it has reported its own errors
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGINT, signal.SIGTERM)
# Messages of libraries that do not raise MemoryError; the last two come from the dynamic linker loading PyTorch.
MEMORY_WORDS = ("not enough memory", "out of memory", "cannot allocate memory", "failed to map segment")
LESS_MEMORY = "take a part with --slices or --repetitions, fewer coils with --virtual-coils, or a machine with more memory"
IMPORT_S = 30.0  # longest time for which an import delays a termination signal
RETRY_S = 0.05
SPARE_BYTES = 64 << 20  # if this allocation fails, any library error is attributed to lack of memory


class Stopped(KeyboardInterrupt):
    """Termination signal; partial outputs are removed on the way out, as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


def run_in_child(command: Callable[[], int]) -> int:
    """Run `command` in a child process, forwarding signals and reporting its death as an error message.

    A damaged file can crash the HDF5 library, and a large one can make the kernel kill the process. The parent, which has
    imported and read nothing, reports both as a one-line error.

    Parameters
    ----------
    command
        Function that returns the exit status.

    Returns
    -------
    int
        Exit status of the command; 2 if the child crashed or was killed; 128 + number for any other signal.
    """
    if not hasattr(os, "fork"):
        return command()
    sys.stdout.flush()
    # Blocked until the handlers are installed: a signal in between would end one process with a traceback.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    child = os.fork()
    if child == 0:
        code = 0
        try:
            _stop_once()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            code = TOLD + command()
            sys.stdout.flush()
        except BrokenPipeError:  # closed pipe, as in `recon info scan.h5 | head`
            code = TOLD
        finally:
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os._exit(code)
    return _wait(child)


def _stop_once() -> None:
    """Handle the first termination signal and ignore further ones, so that the clean-up completes."""
    command = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != command:  # a worker process that inherited this handler: restore the default behaviour
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for other in STOPPING:
            signal.signal(other, signal.SIG_IGN)
        _raise_after_imports(number, frame, time.monotonic() + IMPORT_S)

    for number in STOPPING:
        signal.signal(number, stop)


def _raise_after_imports(number: int, frame: FrameType | None, deadline: float) -> None:
    """Raise `Stopped`, during an import as soon as it has ended.

    The import system and the compiler discard exceptions of signal handlers: the process would go on, and ignore all further
    signals.
    """
    if not _importing(frame) or time.monotonic() >= deadline:
        raise Stopped(number)
    signal.signal(signal.SIGALRM, lambda _, then: _raise_after_imports(number, then, deadline))
    signal.setitimer(signal.ITIMER_REAL, RETRY_S)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def _wait(child: int) -> int:
    """Wait for the child, forwarding signals, and report a death by signal."""

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
        # The child reports every failure itself, except when memory ran out completely or a library aborted for lack of it.
        print_error(out_of_memory("allocation failed before the error could be located"))
        return EXIT_INPUT_ERROR
    died_of = os.WTERMSIG(status)
    if died_of == signal.SIGKILL:
        # The cause of a SIGKILL is recorded in the system log only.
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
    """Files on the command line, for errors that cannot be attributed to one of them."""
    files = [argument for argument in sys.argv[1:] if os.path.isfile(argument)]
    return ", ".join([*files[:3], *["..."][: max(0, len(files) - 3)]])


def memory_is_used_up() -> bool:
    """Whether `SPARE_BYTES` cannot be allocated: extensions that ignore failed allocations raise unrelated errors."""
    try:
        bytearray(SPARE_BYTES)
    except MemoryError:
        return True
    return False


def out_of_memory(detail: str) -> str:
    """Error message for lack of memory, with the requested size if `detail` contains it."""
    asked = re.search(r"tried to allocate (\d+) bytes", detail)  # PyTorch's message, after a line of its source code
    detail = f"{int(asked[1]) / 2**20:.0f} MiB requested" if asked else " ".join(detail.split())[:160]
    return f"out of memory ({detail or 'allocation failed'}){_where()}; {LESS_MEMORY}"


def _where() -> str:
    return f" in {_given()}" if _given() else ""


def print_error(message: str) -> None:
    """Print an error message to stderr."""
    print(f"recon: error: {message}", file=sys.stderr, flush=True)
