"""Sessions that are not quite right: messages lost, doubled and exchanged, bytes changed, removed, doubled, cut."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate

from tests.support.served import Served

STRUCTURE_BYTES = 64  # of each message, that half of the changes hit: its kind, its lengths, its counters
LEFT_OPEN = 50  # one of so many sessions ends without a word, and is the server's to close


def mutated(messages: Sequence[bytes], seed: int) -> bytes:
    """A session that differs from `messages` in a few places."""
    rng = random.Random(seed)
    parts = list(messages)
    for _ in range(rng.choice([0, 0, 1, 2])):
        _change_messages(parts, rng)
    changed = bytearray(b"".join(parts))
    starts = [0, *accumulate(map(len, parts))][:-1]
    for _ in range(rng.choice([1, 1, 2, 4, 8])):
        near = rng.choice(starts) + rng.randrange(STRUCTURE_BYTES) if rng.random() < 0.5 else rng.randrange(2**30)
        _change_bytes(changed, near % max(1, len(changed)), rng)
    return bytes(changed) or b"\0"


def _change_messages(parts: list[bytes], rng: random.Random) -> None:
    i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
    kind = rng.randrange(4)
    if kind == 0 and len(parts) > 1:
        del parts[i]
    elif kind == 1:
        parts.insert(j, parts[i])
    elif kind == 2:
        parts[i], parts[j] = parts[j], parts[i]
    else:
        parts.insert(j, rng.choice([1, 2, 3, 5, 6, 1018, 1019, 1023, 1030, 65535]).to_bytes(2, "little"))


def _change_bytes(changed: bytearray, at: int, rng: random.Random) -> None:
    kind = rng.randrange(6)
    if kind == 0:
        changed[at : at + 1] = rng.randbytes(1)
    elif kind == 1:
        changed[at : at + 1] = rng.choice([b"\0", b"\x01", b"\x7f", b"\x80", b"\xff"])
    elif kind == 2:
        del changed[at : at + rng.randint(1, 400)]
    elif kind == 3:
        changed[at:at] = changed[at : at + rng.randint(1, 400)]
    elif kind == 4:
        changed[at : at + 4] = rng.randbytes(4)
    elif rng.random() < 0.3:
        del changed[at:]


def attack(served: Served, messages: Sequence[bytes], seeds: Sequence[int], n_clients: int = 1) -> None:
    """Send a mutated session for each seed, a few at a time; each ends in CLOSE or a closed socket, and is logged as ended."""
    before = len(served.named("connected"))
    with ThreadPoolExecutor(n_clients) as clients:
        for failed in clients.map(lambda seed: _failure(served, mutated(messages, seed), seed), seeds):
            assert not failed, failed
    served.wait_for("connected", before + len(seeds))
    served.wait_until(lambda: not served.open_sessions() or bool(served.named("defect")), "a session has not ended")
    assert served.process.poll() is None, "the server has ended"
    assert not served.named("defect"), served.named("defect")


def _failure(served: Served, data: bytes, seed: int) -> str | None:
    with served.connect() as connection:
        with suppress(OSError):
            connection.sendall(data)
            if seed % LEFT_OPEN:
                connection.shutdown(socket.SHUT_WR)
        try:
            while connection.recv(65536):
                pass
        except ConnectionError:
            return None
        except OSError as error:  # a time-out
            return f"the session of seed {seed} does not end: {error!r}"
    return None
