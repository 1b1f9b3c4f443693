"""Seeds that depend on what is made, never on how the work was cut."""

from __future__ import annotations

import hashlib


def seed_of(run_seed: int, key: str, draw: int, stream: str) -> int:
    """Return 63 bits from the run's seed, the image's key, the draw (or epoch) and the name of the stream."""
    text = "\0".join((str(run_seed), key, str(draw), stream))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1
