"""What a page holds, read as its description says."""

from __future__ import annotations

import base64
import json
import re
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def decode(block: bytes, shape: tuple[int, int]) -> NDArray[np.int64]:
    """The format as its description says it, point by point."""
    raw = zlib.decompress(block)
    ny, nx = shape
    codes = np.zeros(shape, dtype=np.int64)
    for i in range(ny * nx):
        folded = raw[i] + 256 * raw[ny * nx + i]
        y, x = divmod(i, nx)
        left, up = codes[y, x - 1] if x else None, codes[y - 1, x] if y else None
        if left is None or up is None:
            expected = 0 if left is None and up is None else up if left is None else left
        else:
            expected = sorted((left, up, left + up - codes[y - 1, x - 1]))[1]
        codes[y, x] = expected + (-(folded + 1) // 2 if folded % 2 else folded // 2)
    return codes


def json_of(html: str, element: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{element}">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found.group(1))


def block_of(html: str, key: str) -> bytes:
    found = re.search(rf'<script type="text/plain" id="b{key}">(.*?)</script>', html)
    assert found
    return base64.b64decode(found.group(1))
