"""ReLU and dropout in one, cheap on a CPU, where each fresh tensor and above all the usual drawing of random numbers cost more
than the arithmetic: a training step of a lifter spends its time in matrix products then.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["ReLUDropout"]


class ReLUDropout(nn.Module):
    """`dropout(relu(x))`, in the memory of x. One random integer of 64 bits decides on four entries: p is rounded to 1/65536."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return _ReLUDropout.apply(x, self.p) if self.training and self.p > 0 else x.relu_()

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _ReLUDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        mask = bits.view(torch.int16)[: x.numel()].view(x.shape).float()
        # Whole numbers less a half one, clamped: 0 or a half.
        mask.sub_(round(p * 2**16) - 2**15 - 0.5).clamp_(0, 0.5).mul_(2 / (1 - p))
        x.relu_().mul_(mask)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.scale = 1 / (1 - p)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradients[0], y, 0).mul_(ctx.scale), None
