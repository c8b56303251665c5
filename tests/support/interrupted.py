"""Module that is interrupted while it is imported, and discards the exception as the import system and the compiler do."""

import os
import signal
from contextlib import suppress

with suppress(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGTERM)
