"""Lightning callbacks, one class a file."""

from rwml_callbacks.prediction_table import PredictionTable
from rwml_callbacks.progress import RolloutProgressBar
from rwml_callbacks.reward_logger import RewardLogger
from rwml_callbacks.trace_recorder import TraceRecorder
from rwml_callbacks.weight_sync import WeightSync

__all__ = ["PredictionTable", "RewardLogger", "RolloutProgressBar", "TraceRecorder", "WeightSync"]
