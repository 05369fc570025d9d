"""Specification of an environment by its Gymnasium id or by the path of its class."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_origin, get_type_hints

import gymnasium
from gymnasium.envs.registration import ENV_ID_RE, find_highest_version, get_env_id, parse_env_id

from rwml_lightning.envs.alfworld.generated_games import GeneratedGames

Factory = Callable[..., gymnasium.Env[Any, Any]]


@dataclass(frozen=True)
class EnvironmentSpec:
    """Specification of an environment, from which this process or a worker process makes it.

    Only classes and functions that make environments are called: their type is checked before the call. Importing a module runs
    its code, so a config must name trusted modules only.

    Args:
        id: Gymnasium id, or path of a ``gymnasium.Env`` class or of a function annotated to return one
            (``package.module:Class`` or ``package.module.Class``). A Gymnasium id (``rwml/ALFWorld-v0``) without a version means the
            newest version; ``module:id`` imports the module first.
        kwargs: Keyword arguments of the environment.
        games: Games to generate if they do not exist. The environment plays them unless ``kwargs`` contains ``data``.

    Example:
        >>> EnvironmentSpec("rwml/ALFWorld-v0", {"data": "games", "max_steps": 30}).make()  # doctest: +SKIP
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    games: GeneratedGames | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the environment, with the folder of the generated games as default of ``data``."""
        return ({} if self.games is None else {"data": self.games.folder}) | dict(self.kwargs)

    def prepare(self, seed: int) -> None:
        """Generate the games that do not exist yet."""
        if self.games is not None:
            self.games.generate(seed)

    def make(self) -> gymnasium.Env[Any, Any]:
        """Make the environment.

        Raises:
            ValueError: The environment does not exist, or it does not accept these arguments. The message names the environment.
        """
        try:
            environment = _find_factory(self.id)(**self.arguments)
        except (TypeError, gymnasium.error.Error) as error:
            raise ValueError(f"environment {self.id!r}: {error}") from error
        if not isinstance(environment, gymnasium.Env):
            made = type(environment).__name__
            raise ValueError(f"environment {self.id!r} makes a {made}, not a gymnasium.Env")
        return environment


def _find_factory(name: str) -> Factory:
    """Return the class or function that makes the environment. A module before the colon is imported first."""
    module_name, colon, attribute = name.partition(":")
    registered = None if colon else _registered_factory(name)
    if registered is not None:
        return registered
    if not colon:
        module_name, _, attribute = name.rpartition(".")
    if not attribute or not all(map(str.isidentifier, module_name.split("."))):
        known = ", ".join(sorted(one for one in gymnasium.registry if one.startswith("rwml/")))
        raise ValueError(
            f"environment {name!r} is neither a registered Gymnasium id ({known}, ...) nor 'module:id' nor "
            "'package.module:Class'"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"environment {name!r}: {error}") from error
    registered = _registered_factory(attribute) if colon else None
    if registered is not None:
        return registered
    factory = getattr(module, attribute, None)
    if factory is None:
        raise ValueError(
            f"environment {name!r}: module {module_name!r} has no {attribute!r} and registers no such Gymnasium id"
        )
    if not _makes_environments(factory):
        raise ValueError(
            f"environment {name!r} is neither a gymnasium.Env class nor a function annotated to return one "
            "('-> gymnasium.Env'), so it is not called"
        )
    return factory


def _registered_factory(identifier: str) -> Factory | None:
    """Return the factory of a registered environment, or ``None``. An id without a version means the newest version."""
    if identifier not in gymnasium.registry and ENV_ID_RE.fullmatch(identifier):
        namespace, name, version = parse_env_id(identifier)
        newest = find_highest_version(namespace, name) if version is None else None
        identifier = identifier if newest is None else get_env_id(namespace, name, newest)
    if identifier not in gymnasium.registry:
        return None
    # Gymnasium's environment checker warns about each text outside the space. The environment applies its own step limit.
    return lambda **kwargs: gymnasium.make(identifier, disable_env_checker=True, **kwargs)


def _makes_environments(factory: Any) -> bool:
    made = factory
    if not isinstance(factory, type):
        try:
            made = get_type_hints(factory).get("return")
        except (TypeError, NameError, AttributeError):  # not a function, or an unresolvable annotation
            return False
    made = get_origin(made) or made
    return isinstance(made, type) and issubclass(made, gymnasium.Env)
