"""The One-Euro filter: a low pass whose cut-off rises with speed, so that what rests does not tremble and what moves does not lag.

Casiez, Roussel & Vogel, "1 € filter: a simple speed-based low-pass filter for noisy input in interactive systems", CHI 2012.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["OneEuro", "OneEuroState"]


class OneEuroState(NamedTuple):
    """What the filter remembers of the frames so far."""

    raw: Float[Tensor, "*S"]  # the last sample
    value: Float[Tensor, "*S"]  # the last filtered sample
    speed: Float[Tensor, "*S"]  # the filtered derivative, in units of the sample per unit of time


@dataclass(frozen=True)
class OneEuro:
    """A filter of samples that come `rate` times per unit of time; each number of a sample is filtered by itself.

    `min_cutoff` (per unit of time) is the cut-off at rest and sets the jitter that is left, `beta` is how much of the speed is
    added to it and sets the lag. So `beta` depends on the unit of the samples. `derivative_cutoff` smooths the speed.

    `derivative`: the speed is taken from the last sample ("raw", as in the authors' first C++ code) or from the last filtered one
    ("filtered", as in ports of the paper's pseudo-code, the authors' later reference code, VIBE and mmhuman3d, the latter two with
    a rate of 1: cut-offs are per frame there).
    """

    rate: float
    min_cutoff: float = 1.0
    beta: float = 0.0
    derivative_cutoff: float = 1.0
    derivative: Literal["raw", "filtered"] = "raw"

    def __post_init__(self):
        if not (self.rate > 0 and self.min_cutoff > 0 and self.derivative_cutoff > 0 and self.beta >= 0):
            raise ValueError(f"rates and cut-offs must be positive, and beta not negative: {self}")

    def step(self, state: OneEuroState | None, sample: Float[Tensor, "*S"]) -> OneEuroState:
        """The state after one more sample; `value` is the answer. `state` None: it is the first, and passes unchanged."""
        if state is None:
            return OneEuroState(sample, sample, torch.zeros_like(sample))
        last = state.raw if self.derivative == "raw" else state.value
        share = self._share(torch.full_like(sample, self.derivative_cutoff))
        speed = share * (sample - last) * self.rate + (1 - share) * state.speed
        share = self._share(self.min_cutoff + self.beta * speed.abs())
        return OneEuroState(sample, share * sample + (1 - share) * state.value, speed)

    def __call__(self, samples: Float[Tensor, "T ..."]) -> Float[Tensor, "T ..."]:
        state, out = None, []
        for sample in samples:
            state = self.step(state, sample)
            out.append(state.value)
        return torch.stack(out) if out else samples

    def _share(self, cutoff: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """How much of the new sample an exponential average with that cut-off takes."""
        turn = 2 * math.pi * cutoff / self.rate
        return turn / (turn + 1)
