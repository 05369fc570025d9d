"""One import for all names of this package that need the engine's packages."""

from rwml_lightning.envs.tau2.conversation import Conversation, Reply
from rwml_lightning.envs.tau2.domains import SOLO_DOMAINS, can_play, domains, splits_of, tasks_of
from rwml_lightning.envs.tau2.references import background, predictable, reference, simple_calls
from rwml_lightning.envs.tau2.reward import do_nothing_reward
from rwml_lightning.envs.tau2.users import UserModel

__all__ = [
    "SOLO_DOMAINS",
    "Conversation",
    "Reply",
    "UserModel",
    "background",
    "can_play",
    "do_nothing_reward",
    "domains",
    "predictable",
    "reference",
    "simple_calls",
    "splits_of",
    "tasks_of",
]
