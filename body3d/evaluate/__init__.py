"""Predictions against ground truth by the protocols of the papers, each under a name that says which one it is."""

from body3d.evaluate.protocols import PROTOCOLS, evaluate
from body3d.evaluate.result import Figure, Result

__all__ = ["PROTOCOLS", "Figure", "Result", "evaluate"]
