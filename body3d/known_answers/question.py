"""What a known answer asks, how it is answered, and how the two are compared."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Adapter", "Comparison", "Network", "Question", "State", "published_input", "published_weight"]

State = dict[str, Tensor]


@dataclass(frozen=True)
class Comparison:
    """One output: the largest difference, and the largest relative to what is tolerated (at most 1 if equal)."""

    output: str
    shape: tuple[int, ...]
    difference: float
    ratio: float

    @property
    def equal(self) -> bool:
        return self.ratio <= 1  # False for NaN


@dataclass(frozen=True)
class Question:
    """What a file asks: the function's published name, its inputs, and everything else that its `meta` says."""

    name: str
    inputs: dict[str, Tensor]
    meta: dict[str, Any]
    folder: Path

    def __getitem__(self, key: str) -> Tensor:
        return self.inputs[key]


Adapter = Callable[[Question], dict[str, Tensor]]


@dataclass(frozen=True)
class Network:
    """What answers a file.

    `run` is called with the file's inputs by their names and gives its outputs in their order; None: the module is called with
    the inputs in their order and gives one output or a sequence of them. `rename` makes our state_dict of the published one.
    """

    module: nn.Module
    rename: Callable[[State], State] = lambda state: state
    run: Callable[..., Sequence[Tensor]] | None = None
    tolerance: Mapping[int, float] = field(
        default_factory=dict
    )  # absolute, of outputs that the rule below does not suit


# ---- the rule ------------------------------------------------------------------------------------------------------
def published_weight(key: str, shape: Sequence[int], seed: int = 0, gain: float = 1.0) -> Tensor:
    """The value of a state_dict entry by its published key and shape; `gain` scales what has two or more dimensions."""
    random, name = _random(f"{seed}:{key}"), key.rpartition(".")[-1]
    if name == "num_batches_tracked":
        return torch.zeros(tuple(shape), dtype=torch.int64)
    if name == "running_var" or (name == "weight" and len(shape) == 1):
        values = random.uniform(0.5, 1.5, shape)
    elif len(shape) < 2:
        values = 0.1 * random.standard_normal(shape)
    else:
        values = random.standard_normal(shape) * math.sqrt(1 / max(1, math.prod(shape[1:])))
        return torch.from_numpy(values.astype(np.float32) * np.float32(gain))
    return torch.from_numpy(np.asarray(values, np.float32))


def published_input(name: str, shape: Sequence[int], seed: int = 0) -> Tensor:
    """The standard normal input of that name and shape."""
    return torch.from_numpy(_random(f"{seed}:input:{name}").standard_normal(shape).astype(np.float32))


def _random(text: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(text.encode())))
