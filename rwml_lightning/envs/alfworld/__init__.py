"""ALFWorld: environment, games, kinds of transitions and model-free baselines. Importing this package does not need ALFWorld."""

from rwml_lightning.envs.alfworld.difficulty import Difficulty
from rwml_lightning.envs.alfworld.env import ALFWorldEnv
from rwml_lightning.envs.alfworld.floors import FLOORS
from rwml_lightning.envs.alfworld.games import Game, GameIndex, scan_games
from rwml_lightning.envs.alfworld.generate import generate_games
from rwml_lightning.envs.alfworld.kinds import KINDS, is_knowable, transition_kind

__all__ = [
    "FLOORS",
    "KINDS",
    "ALFWorldEnv",
    "Difficulty",
    "Game",
    "GameIndex",
    "generate_games",
    "is_knowable",
    "scan_games",
    "transition_kind",
]
