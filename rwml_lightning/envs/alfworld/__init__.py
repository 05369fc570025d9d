"""ALFWorld: environment, games, kinds of transitions and model-free baselines. Importing this package does not need ALFWorld."""

from rwml_lightning.envs.alfworld.env import ALFWorldEnv
from rwml_lightning.envs.alfworld.floors import FLOORS
from rwml_lightning.envs.alfworld.games import scan_games
from rwml_lightning.envs.alfworld.generate import generate_games

__all__ = ["FLOORS", "ALFWorldEnv", "generate_games", "scan_games"]
