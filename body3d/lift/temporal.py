"""VideoPose3D: dilated convolutions over time, from windows of 2D poses to the 3D pose of one frame.

Pavllo, Feichtenhofer, Grangier & Auli, "3D human pose estimation in video with temporal convolutions and semi-supervised
training", CVPR 2019. The modules bear the published names, so that released checkpoints load as they are.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from body3d.checkpoints import read_published, what_network
from body3d.errors import InputError
from body3d.lift.dropout import ReLUDropout

__all__ = ["VideoPose3D", "load_videopose3d", "pad_ends"]


class VideoPose3D(nn.Module):
    """(B, T, J, 2) in screen coordinates to (B, T - frames + 1, outputs, 3): one pose for each whole window of `frames`.

    `widths` of the convolutions: three, four, five times 3 see 27, 81, 243 frames, and each is dilated by the product of those
    before it. Nothing is padded inside; `pad_ends` gives a video as many poses as frames. `causal` puts a window's frame at its
    end, not in its middle (the weights fit both, but were trained for one).

    The same weights are computed in two ways. `dense` slides over a video: what neighbouring windows share is computed once.
    `strided` takes the convolutions' widths as strides and gives the pose of single windows, an order of magnitude cheaper: the
    form for training. `forward` chooses by the length of its input.
    """

    def __init__(
        self,
        joints: int = 17,
        outputs: int | None = None,
        widths: Sequence[int] = (3, 3, 3),
        causal: bool = False,
        channels: int = 1024,
        dropout: float = 0.25,
    ):
        super().__init__()
        if any(width % 2 == 0 for width in widths):
            raise ValueError(f"the widths of the convolutions must be odd, got {tuple(widths)}")
        self.widths, self.causal, self.frames = tuple(widths), causal, math.prod(widths)
        self.expand_conv = nn.Conv1d(2 * joints, channels, widths[0], bias=False)
        self.expand_bn = nn.BatchNorm1d(channels)
        # Of each block the wide convolution, then one of width 1.
        pairs = [width for inner in widths[1:] for width in (inner, 1)]
        self.layers_conv = nn.ModuleList(nn.Conv1d(channels, channels, width, bias=False) for width in pairs)
        self.layers_bn = nn.ModuleList(nn.BatchNorm1d(channels) for _ in pairs)
        self.shrink = nn.Conv1d(channels, 3 * (outputs or joints), 1)
        self.active = ReLUDropout(dropout)

    def forward(self, xy: Float[Tensor, "B T J 2"]) -> Float[Tensor, "B N O 3"]:
        return self.strided(xy) if xy.shape[1] == self.frames else self.dense(xy)

    def dense(self, xy: Float[Tensor, "B T J 2"]) -> Float[Tensor, "B N O 3"]:
        """The pose of every whole window in T frames."""
        if xy.shape[1] < self.frames:
            raise ValueError(f"{xy.shape[1]} frames are fewer than the {self.frames} that the network sees at once")
        x = self.active(self.expand_bn(self.expand_conv(xy.flatten(2).mT)))
        dilation = self.widths[0]
        for width, wide, narrow in self._blocks():
            y = nn.functional.conv1d(x, wide[0].weight, dilation=dilation)
            y = self.active(narrow[1](narrow[0](self.active(wide[1](y)))))
            x = x[..., self._frame(width) * dilation :][..., : y.shape[-1]] + y
            dilation *= width
        return self.shrink(x).mT.unflatten(-1, (-1, 3))

    def strided(self, xy: Float[Tensor, "B T J 2"]) -> Float[Tensor, "B N O 3"]:
        """The pose of each of the windows that lie end to end in T frames."""
        if xy.shape[1] % self.frames:
            raise ValueError(f"{xy.shape[1]} frames are no multiple of the {self.frames} that the network sees at once")
        # Every frame is a row. A convolution whose stride is its width is a matrix product of `width` rows laid end to end.
        x = self.active(self.expand_bn(_join_rows(self.expand_conv, xy.flatten(2).flatten(0, 1))))
        for width, wide, narrow in self._blocks():
            y = self.active(wide[1](_join_rows(wide[0], x)))
            x = x.unflatten(0, (-1, width))[:, self._frame(width)] + self.active(narrow[1](_join_rows(narrow[0], y)))
        return _join_rows(self.shrink, x).unflatten(-1, (-1, 3)).unflatten(0, (len(xy), -1))

    def _blocks(self) -> Iterator[tuple[int, tuple[nn.Conv1d, nn.Module], tuple[nn.Conv1d, nn.Module]]]:
        """Of each block its width, and both convolutions with their batch norms."""
        pairs = [(cast(nn.Conv1d, conv), norm) for conv, norm in zip(self.layers_conv, self.layers_bn, strict=True)]
        yield from zip(self.widths[1:], pairs[::2], pairs[1::2], strict=True)

    def _frame(self, width: int) -> int:
        """Which of the frames that a wide convolution sees the skip carries: the one that the pose is of."""
        return width - 1 if self.causal else width // 2


def _join_rows(conv: nn.Conv1d, x: Float[Tensor, "R C"]) -> Float[Tensor, "S D"]:
    """The convolution with its width as stride, over rows."""
    weight = conv.weight.permute(0, 2, 1).flatten(1)
    return nn.functional.linear(x.reshape(-1, weight.shape[1]), weight, conv.bias)


def pad_ends(xy: Float[Tensor, "*B T J D"], frames: int, causal: bool = False) -> Float[Tensor, "*B S J D"]:
    """A video with its first and last frame repeated, so that every one of its frames has a window of `frames` around it.

    Causal windows end with their frame: only the first is repeated then.
    """
    before = frames - 1 if causal else frames // 2
    at = torch.arange(-before, xy.shape[-3] + frames - 1 - before, device=xy.device)
    return xy[..., at.clamp(0, xy.shape[-3] - 1), :, :]


def load_videopose3d(path: Path | str, causal: bool = False) -> VideoPose3D:
    """The network of a published checkpoint, of the size that its weights say, in eval mode.

    `causal` says how it was trained: the file does not. InputError if it holds another network.
    """
    state = read_published(path)
    if "expand_conv.weight" not in state or "shrink.weight" not in state:
        raise InputError(f"{path} holds {what_network(state)}, not VideoPose3D")
    channels, inputs, first = state["expand_conv.weight"].shape
    wide = sorted(int(key.split(".")[1]) for key in state if key.startswith("layers_conv."))[::2]
    widths = (first, *(state[f"layers_conv.{i}.weight"].shape[-1] for i in wide))
    network = VideoPose3D(inputs // 2, len(state["shrink.weight"]) // 3, widths, causal, channels)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} holds another VideoPose3D: {' '.join(str(error).split())[:300]}") from error
    return network.eval()
