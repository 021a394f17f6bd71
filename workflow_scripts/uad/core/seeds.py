"""One master seed, many independent streams."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: object) -> int:
    """A 31-bit seed from any printable parts, for example (seed, experiment, method, fold).

    Equal parts give equal seeds on every machine; a change in any part gives an
    unrelated one. 31 bits fit NumPy, torch and ANTs (ITK takes a signed int).
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF
