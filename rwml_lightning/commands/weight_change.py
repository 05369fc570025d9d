"""``weight_change``: compare the weights of two models."""

from __future__ import annotations

from rwml_lightning.changed_weights import SafetensorsFolder, compare_weights, render_changes
from rwml_lightning.models import resolve_model
from rwml_lightning.terminal import Terminal


def weight_change(before: str, after: str) -> None:
    """Print the share of scalar weights that differ between two models, by layer and module.

    Args:
        before: Folder, hub id or ``package:`` name of the model before training.
        after: Folder, hub id or ``package:`` name of the trained model, for example a run's ``export`` folder.
    """
    trained = SafetensorsFolder(resolve_model(after))
    changes = compare_weights(SafetensorsFolder(resolve_model(before)), trained.items())
    Terminal().print(render_changes(changes))
