"""tau2-bench: environment, hybrid next states and users. Importing this package does not need the engine."""

from rwml_lightning.envs.tau2.env import Tau2Env

__all__ = ["Tau2Env"]
