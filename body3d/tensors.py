"""The mix-in that every value of the pipeline shares."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound="Tensors")


@dataclass(frozen=True)
class Tensors:
    """Dataclass mix-in: indexing, `.to` and `.map` act on every tensor field (nested ones too), and on nothing else."""

    def map(self: T, fn: Callable[[Tensor], Tensor]) -> T:
        def one(value):
            return fn(value) if isinstance(value, Tensor) else value.map(fn) if isinstance(value, Tensors) else value

        return replace(self, **{f.name: one(getattr(self, f.name)) for f in fields(self)})

    def __getitem__(self: T, i) -> T:
        def one(value):
            return value[i] if isinstance(value, Tensor | Tensors) else value

        return replace(self, **{f.name: one(getattr(self, f.name)) for f in fields(self)})

    def to(self: T, *args, **kwargs) -> T:
        """As `Tensor.to`; a floating-point type is for the floating-point fields alone, all others change their device only."""

        def move(t: Tensor) -> Tensor:
            if t.is_floating_point():
                return t.to(*args, **kwargs)
            return t.to(torch.empty(0, device=t.device).to(*args, **kwargs).device)

        return self.map(move)
