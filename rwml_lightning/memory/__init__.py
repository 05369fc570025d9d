"""Memory of a run, planned before anything is loaded."""

from rwml_lightning.memory.planning import (
    GIB,
    Embedder,
    Hardware,
    Plan,
    card_memory,
    local_embedders,
    machine_memory,
    plan,
)

__all__ = ["GIB", "Embedder", "Hardware", "Plan", "card_memory", "local_embedders", "machine_memory", "plan"]
