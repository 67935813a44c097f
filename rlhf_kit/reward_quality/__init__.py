"""From rankings with a reward model's scores to everything that says whether that model is good enough. numpy only."""

from .evaluate import evaluate
from .figures import Accuracy, CurvePoint, Quality, Scored

__all__ = ["Accuracy", "CurvePoint", "Quality", "Scored", "evaluate"]
