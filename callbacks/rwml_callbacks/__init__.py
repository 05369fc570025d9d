"""Lightning callbacks, one class per file."""

from rwml_callbacks.capability_probe import CapabilityProbe
from rwml_callbacks.easy_samples.filter import EasySampleFilter
from rwml_callbacks.episode_table import EpisodeTable
from rwml_callbacks.forgetting import Forgetting
from rwml_callbacks.prediction_table import PredictionTable
from rwml_callbacks.progress import RolloutProgressBar
from rwml_callbacks.reward_hacking_watch import RewardHackingWatch
from rwml_callbacks.reward_logger import RewardLogger
from rwml_callbacks.step_checkpoint import StepCheckpoint
from rwml_callbacks.trace_recorder import TraceRecorder
from rwml_callbacks.weight_change import WeightChange
from rwml_callbacks.weight_sync import WeightSync

__all__ = [
    "CapabilityProbe",
    "EasySampleFilter",
    "EpisodeTable",
    "Forgetting",
    "PredictionTable",
    "RewardHackingWatch",
    "RewardLogger",
    "RolloutProgressBar",
    "StepCheckpoint",
    "TraceRecorder",
    "WeightChange",
    "WeightSync",
]
