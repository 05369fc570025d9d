"""Import of ALFWorld and TextWorld, an optional dependency. If they are missing, the error says how to install them."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

INSTALL = "pip install 'rwml-lightning[alfworld]'"


def import_engine(name: str) -> ModuleType:
    """Import a module that needs ALFWorld's packages.

    Importing ``alfworld`` creates the folder in ``ALFWORLD_DATA``, by default a cache in the user's home folder. If the variable is
    not set, it is set to the package's own folder during the import.

    Args:
        name: Module name, for example ``alfworld.gen.constants`` or ``rwml_lightning.envs.alfworld.engine``.

    Raises:
        ModuleNotFoundError: The extra is not installed. The message contains the command that installs it.
    """
    try:
        spec = importlib.util.find_spec("alfworld")
        if spec is None:
            raise ModuleNotFoundError("No module named 'alfworld'", name="alfworld")
        if "ALFWORLD_DATA" in os.environ:
            return importlib.import_module(name)
        os.environ["ALFWORLD_DATA"] = next(iter(spec.submodule_search_locations or [os.getcwd()]))
        try:
            return importlib.import_module(name)
        finally:
            del os.environ["ALFWORLD_DATA"]
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "rwml_lightning":
            raise
        message = f"ALFWorld needs the package {error.name!r}, which is not installed: {INSTALL}"
        raise ModuleNotFoundError(message, name=error.name) from error
