"""tau2-bench: environment, hybrid next states, users. Importing this needs no engine."""

from rwml_lightning.envs.tau2.env import Tau2Env

__all__ = ["Tau2Env"]
