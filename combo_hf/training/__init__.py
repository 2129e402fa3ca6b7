"""Training on Accelerate: recipe, clips in memory, optimizer, loop and evaluation."""

from combo_hf.training.arguments import ModelRecipe, SyntheticRecipe, TrainingRecipe
from combo_hf.training.data import ClipTensors, prepare_synthetic, synthetic_labels
from combo_hf.training.evaluation import evaluate_model
from combo_hf.training.loop import TrainingResult, build_model, train
from combo_hf.training.optimizer import build_optimizer, build_scheduler, parameter_groups


__all__ = [
    "ClipTensors",
    "ModelRecipe",
    "SyntheticRecipe",
    "TrainingRecipe",
    "TrainingResult",
    "build_model",
    "build_optimizer",
    "build_scheduler",
    "evaluate_model",
    "parameter_groups",
    "prepare_synthetic",
    "synthetic_labels",
    "train",
]
