"""Seeds as a function of position: the seed of a sample depends only on the run's seed and its position in the run."""

from __future__ import annotations

import hashlib

from rwml_lightning.printable import well_formed


def derive_seed(run_seed: int, *position: int | str) -> int:
    """Derive the seed of one sample.

    Args:
        run_seed: Seed of the run.
        position: Position of the sample, for example ``("wm", step, group, member)``.

    Returns:
        Integer in [0, 2**31), the same in every process and on every machine.
    """
    text = "/".join([str(run_seed), *map(str, position)])
    return int.from_bytes(hashlib.blake2b(well_formed(text).encode(), digest_size=4).digest(), "big") >> 1
