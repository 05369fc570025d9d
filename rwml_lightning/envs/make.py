"""How a config names an environment: by its Gymnasium id, or by the path of its class."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium


@dataclass(frozen=True)
class EnvironmentSpec:
    """An environment that is yet to be made, here or in a worker process.

    Args:
        id: Gymnasium id (``rwml/ALFWorld-v0``, or ``module:id`` with a module to import first), or the path of a
            ``gymnasium.Env`` class or factory (``package.module:Class`` or ``package.module.Class``).
        kwargs: Arguments of the environment.

    Example:
        >>> EnvironmentSpec("rwml/ALFWorld-v0", {"data": "games", "max_steps": 30}).make()  # doctest: +SKIP
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> gymnasium.Env[Any, Any]:
        """Make the environment.

        Raises:
            ValueError: There is no such environment, or it does not take these arguments; the message names it.
        """
        factory = _registered(self.id) or _import_attribute(self.id)
        try:
            environment = factory(**self.kwargs)
        except TypeError as error:
            raise ValueError(f"environment {self.id!r}: {error}") from error
        if not isinstance(environment, gymnasium.Env):
            made = type(environment).__name__
            raise ValueError(f"environment {self.id!r} makes a {made}, not a gymnasium.Env")
        return environment


def _registered(name: str) -> Any:
    """The factory of a registered environment, or ``None``."""
    module, _, identifier = name.rpartition(":")
    if identifier not in gymnasium.registry and module and "/" in name:
        importlib.import_module(module)
    if identifier not in gymnasium.registry:
        return None
    # The passive checker warns of every text that its space does not list; time limits are the environment's own.
    return lambda **kwargs: gymnasium.make(identifier, disable_env_checker=True, **kwargs)


def _import_attribute(path: str) -> Any:
    module_name, _, attribute = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not attribute:
        known = ", ".join(sorted(name for name in gymnasium.registry if name.startswith("rwml/")))
        raise ValueError(
            f"environment {path!r} is neither a registered Gymnasium id ({known}, ...) nor 'package.module:Class'"
        )
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(f"environment {path!r}: {error}") from error
    except AttributeError as error:
        raise ValueError(f"environment {path!r}: module {module_name!r} has no {attribute!r}") from error
