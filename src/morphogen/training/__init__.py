"""The one training loop, for every task: ``fit(task, TrainingConfig(...), folder)``."""

from morphogen.training.checkpoint import best_weights
from morphogen.training.config import TrainingConfig
from morphogen.training.draws import Draws
from morphogen.training.logging import read_metrics
from morphogen.training.loop import fit
from morphogen.training.start import leave
from morphogen.training.task import Task, TrainResult

__all__ = ["Draws", "Task", "TrainResult", "TrainingConfig", "best_weights", "fit", "leave", "read_metrics"]
