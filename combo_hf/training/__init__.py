"""Training on Accelerate: recipe, clips in memory, optimizer, loop and evaluation."""

from combo_hf.evaluation.scores import evaluate_model
from combo_hf.training.arguments import AvsbenchRecipe, MixedRecipe, ModelRecipe, SyntheticRecipe, TrainingRecipe
from combo_hf.training.clips_in_memory import ClipTensors, prepare_synthetic, synthetic_labels
from combo_hf.training.engine import enable_gradient_checkpointing
from combo_hf.training.loop import TrainingResult, train
from combo_hf.training.optimizer import average_weights, build_optimizer, build_scheduler, parameter_groups
from combo_hf.training.run import push_checkpoint, run_recipe
from combo_hf.training.sources import build_data, label_names
from combo_hf.training.start import build_model, build_processor


__all__ = [
    "AvsbenchRecipe",
    "ClipTensors",
    "MixedRecipe",
    "ModelRecipe",
    "SyntheticRecipe",
    "TrainingRecipe",
    "TrainingResult",
    "average_weights",
    "build_data",
    "build_model",
    "build_optimizer",
    "build_processor",
    "build_scheduler",
    "enable_gradient_checkpointing",
    "evaluate_model",
    "label_names",
    "parameter_groups",
    "prepare_synthetic",
    "push_checkpoint",
    "run_recipe",
    "synthetic_labels",
    "train",
]
