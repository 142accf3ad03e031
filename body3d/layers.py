"""Convolutional blocks that several networks share. Modules bear torchvision's names, so that published weights load."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "BasicBlock",
    "Bottleneck",
    "PreActBottleneck",
    "SqueezeExcite",
    "conv_bn",
    "deconv_layers",
    "init_kaiming",
    "top_down",
]


def conv_bn(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = False,
    active: bool = True,
) -> nn.Sequential:
    """Convolution, batch norm and (if `active`) ReLU as entries 0, 1 and 2; padded so that stride 1 keeps the size."""
    padding = dilation * (kernel - 1) // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU(inplace=True)] if active else []))


def deconv_layers(
    inputs: int, widths: Sequence[int] = (256, 256, 256), kernel: int = 4, bias: bool = False
) -> nn.Sequential:
    """Transposed convolutions of stride 2, each with batch norm and ReLU: entries 0 1 2, 3 4 5, ...

    The upsampling of SimpleBaseline (Xiao, Wu & Wei, ECCV 2018); each doubles the size. `kernel` is 2, 3 or 4.
    """
    padding, output_padding = {4: (1, 0), 3: (1, 1), 2: (0, 0)}[kernel]
    layers: list[nn.Module] = []
    for before, width in zip((inputs, *widths), widths, strict=False):
        deconv = nn.ConvTranspose2d(before, width, kernel, 2, padding, output_padding, bias=bias)
        nn.init.normal_(deconv.weight, std=0.001)
        layers += [deconv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Channels scaled by what their means over the image say of them (Hu, Shen & Sun, CVPR 2018)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        hidden = channels // reduction
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip (He et al., CVPR 2016), `width` channels out.

    `se` scales what is added to the skip. `downsample` is there where the skip changes size or channels.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1, dilation: int = 1, se: nn.Module | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.se = se
        self.downsample = _downsample(inputs, width, stride)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return _add_skip(self, x, self.bn2(self.conv2(y)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a skip (He et al., CVPR 2016), 4 `width` channels out; the stride is the 3x3's.

    The paper puts the stride into the first 1x1; torchvision, and all pose networks built on its weights, into the 3x3.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1, dilation: int = 1, se: nn.Module | None = None):
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.se = se
        self.downsample = _downsample(inputs, outputs, stride)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return _add_skip(self, x, self.bn3(self.conv3(y)))


class PreActBottleneck(nn.Module):
    """The residual of hourglasses: batch norm and ReLU before each of the 1x1, 3x3 and 1x1 convolutions (which have biases).

    Half of `outputs` channels inside. `spare_skip` makes the 1x1 convolution of the skip even where the identity is used: some
    published code does, so that its files hold a weight that nothing reads.
    """

    def __init__(self, inputs: int, outputs: int, spare_skip: bool = False):
        super().__init__()
        width = outputs // 2
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.bn3, self.conv3 = nn.BatchNorm2d(width), nn.Conv2d(width, outputs, 1)
        self.widens = inputs != outputs
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1)) if self.widens or spare_skip else None

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        y = self.conv1(F.relu(self.bn1(x), inplace=True))
        y = self.conv2(F.relu(self.bn2(y), inplace=True))
        y = self.conv3(F.relu(self.bn3(y), inplace=True))
        return y + (self.downsample(x) if self.widens and self.downsample is not None else x)


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    return conv_bn(inputs, outputs, 1, stride, active=False) if stride != 1 or inputs != outputs else None


def _add_skip(block: BasicBlock | Bottleneck, x: Tensor, y: Tensor) -> Tensor:
    if block.se is not None:
        y = block.se(y)
    return F.relu(y + (x if block.downsample is None else block.downsample(x)), inplace=True)


def top_down(maps: Sequence[Tensor], across: Sequence[nn.Module]) -> Float[Tensor, "B C h w"]:
    """Maps of strides that double, fine to coarse, each through its module of `across`, summed from coarse to fine."""
    y = across[-1](maps[-1])
    for step, finer in zip(reversed(across[:-1]), reversed(maps[:-1]), strict=True):
        y = step(finer) + F.interpolate(F.relu(y), scale_factor=2.0, mode="nearest")
    return F.relu(y)


@torch.no_grad()
def init_kaiming(module: nn.Module) -> None:
    """Convolutions normal with variance 2 / fan out (He et al., ICCV 2015): how ResNets start."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
