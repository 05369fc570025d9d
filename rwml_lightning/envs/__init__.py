"""Gymnasium environments with text observations, and a pool of processes that steps many environments.

Importing this package registers ``rwml/ALFWorld-v0`` and ``rwml/Tau2-v0`` by name only. The engine of an environment is imported
when the environment is made.
"""

import gymnasium

from rwml_lightning.envs.boundary import Observation, read_tasks
from rwml_lightning.envs.chat import Message
from rwml_lightning.envs.make import EnvironmentSpec
from rwml_lightning.envs.pool import EnvironmentPool
from rwml_lightning.envs.worker import Failure

if "rwml/ALFWorld-v0" not in gymnasium.registry:
    gymnasium.register("rwml/ALFWorld-v0", entry_point="rwml_lightning.envs.alfworld.env:ALFWorldEnv")
    gymnasium.register("rwml/Tau2-v0", entry_point="rwml_lightning.envs.tau2.env:Tau2Env")

__all__ = [
    "EnvironmentPool",
    "EnvironmentSpec",
    "Failure",
    "Message",
    "Observation",
    "read_tasks",
]
