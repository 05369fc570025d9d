"""Randomness is a function of position: every sample's seed follows from where it stands in the run."""

from __future__ import annotations

import hashlib

from rwml_lightning.printable import well_formed


def derive_seed(run_seed: int, *position: int | str) -> int:
    """Seed of one sample.

    Args:
        run_seed: The run's one seed.
        position: Where the sample stands, for example ``("wm", step, group, member)``.

    Returns:
        An integer in [0, 2**31), the same in every process and on every machine.
    """
    text = "/".join([str(run_seed), *map(str, position)])
    return int.from_bytes(hashlib.blake2b(well_formed(text).encode(), digest_size=4).digest(), "big") >> 1
