"""VNect: heat maps, and for every joint maps of where it is in 3D, in real time; and its way through a video.

Mehta et al., "VNect: real-time 3D human pose estimation with a single RGB camera", SIGGRAPH 2017. The layers are those of the
public re-implementation of the released Caffe model (timctho/VNect-tensorflow): a ResNet-50 to its fourth stage with strides in the
first 1x1 convolutions, TensorFlow's "SAME" padding, and batch norms folded into the convolutions.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from body3d.codecs.locationmap import LocationMap, LocationMaps
from body3d.crop import crop_matrix
from body3d.errors import InputError
from body3d.filters import OneEuro
from body3d.images import warp_crop
from body3d.layers import init_kaiming
from body3d.nets.efficientnet_lite import LitePyramid
from body3d.posenet import Trunk
from body3d.types import Keypoints2D, Keypoints3D

__all__ = ["Tracker", "VNect", "averaged", "fold", "from_tensorflow", "normalised", "video", "vnect_lite"]

SIDE = 368  # pixels of a crop


# ---- network -------------------------------------------------------------------------------------------------------
class VNect(nn.Module):
    """(B, 3, H, W) to `LocationMaps` of ceil(H/16) * 2 x ceil(W/16) * 2 cells. Published: 21 joints, 368 x 368 to 46 x 46.

    Besides each joint's place from the root, its place from its parent is predicted (`delta`) for the last layers to see, along
    with the bone lengths that follow from it. `folded`: convolutions with biases and without batch norms, as released; to train,
    use the other form and `fold` it afterwards. `width` channels come out of the first convolution, and all others are multiples
    of it; `depths` are the residual blocks of the three stages. `backbone`: another trunk, of 16 `width` channels at stride 16, in
    the place of these stages.
    """

    def __init__(
        self,
        joints: int = 21,
        folded: bool = False,
        width: int = 64,
        depths: tuple[int, int, int] = (3, 4, 6),
        backbone: Trunk | None = None,
    ):
        super().__init__()
        self.joints, self.width, self.depths, self.backbone = joints, width, depths, backbone
        if backbone is None:
            self._add_stages(width, depths, folded)
        self.res5a = _Residual(16 * width, 8 * width, 16 * width, 1, folded, project=True)
        self.res5b = nn.ModuleDict(
            {
                "branch2a": _SameConv(16 * width, 4 * width, 1, folded=folded),
                "branch2b": _SameConv(4 * width, 2 * width, 3, folded=folded),
                "branch2c": _SameConv(2 * width, 4 * width, 1, folded=folded),
            }
        )
        self.res5c_branch1a = nn.ConvTranspose2d(4 * width, 3 * joints, 4, 2, 1, bias=False)
        self.res5c_branch2a = nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False)
        self.bn5c_branch2a = nn.BatchNorm2d(2 * width, 1e-3)
        self.res5c_branch2b = _SameConv(2 * width + 4 * joints, 2 * width, 3, folded=folded)
        self.res5c_branch2c = nn.Conv2d(2 * width, 4 * joints, 1, bias=False)
        for part in self.children():
            if part is not backbone:
                init_kaiming(part)

    def _add_stages(self, width: int, depths: Sequence[int], folded: bool) -> None:
        self.conv1 = _SameConv(3, width, 7, 2, folded=folded)
        inputs = width
        for stage, depth in enumerate(depths, 2):
            inner = width * 2 ** (stage - 2)
            for i in range(depth):
                stride = 2 if i == 0 and stage > 2 else 1
                block = _Residual(inputs, inner, 4 * inner, stride, folded)
                self.add_module(f"res{stage}{'abcdef'[i]}", block)
                inputs = 4 * inner

    def trunk(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """The features of the fourth stage, at stride 16."""
        if self.backbone is not None:
            return self.backbone(image)[-1]
        x = F.relu(self.conv1(image), inplace=True)
        x = F.max_pool2d(_same_pad(x, 3, 2), 3, 2)
        for name, block in self.named_children():
            if re.fullmatch(r"res[234][a-f]", name):
                x = block(x)
        return x

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> LocationMaps:
        return self.maps(self.trunk(image))

    def maps(self, features: Float[Tensor, "B C h w"]) -> LocationMaps:
        x = self.res5a(features)
        for conv in self.res5b.values():
            x = F.relu(conv(x), inplace=True)
        delta = self.res5c_branch1a(x)
        axes = delta.unflatten(1, (3, self.joints))
        bones = axes.square().sum(1).clamp_min(1e-12).sqrt()  # the gradient of a root's own bone, 0, would be infinite
        x = F.relu(self.bn5c_branch2a(self.res5c_branch2a(x)), inplace=True)
        x = F.relu(self.res5c_branch2b(torch.cat([x, delta, bones], 1)), inplace=True)
        out = self.res5c_branch2c(x).unflatten(1, (4, self.joints))
        return LocationMaps(out[:, 0], out[:, 1:].transpose(1, 2), axes.transpose(1, 2))


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does, with the batch norm after it unless that is `folded` into its bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, folded: bool):
        super().__init__(inputs, outputs, kernel, stride, bias=folded)
        self.bn = None if folded else nn.BatchNorm2d(outputs, 1e-3)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        x = super().forward(_same_pad(x, self.kernel_size[0], self.stride[0]))
        return x if self.bn is None else self.bn(x)


def _same_pad(x: Float[Tensor, "B C H W"], kernel: int, stride: int) -> Float[Tensor, "B C h w"]:
    """Zeros so that ceil(size / stride) places come out; an odd one goes to the right and to the bottom."""
    padding = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding) if any(padding) else x


class _Residual(nn.Module):
    """A bottleneck whose first 1x1 convolution has the stride (He et al.'s own form)."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, folded: bool, project: bool = False):
        super().__init__()
        self.branch2a = _SameConv(inputs, width, 1, stride, folded=folded)
        self.branch2b = _SameConv(width, width, 3, folded=folded)
        self.branch2c = _SameConv(width, outputs, 1, folded=folded)
        project = project or stride > 1 or inputs != outputs
        self.branch1 = _SameConv(inputs, outputs, 1, stride, folded=folded) if project else None

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O h w"]:
        y = F.relu(self.branch2a(x), inplace=True)
        y = F.relu(self.branch2b(y), inplace=True)
        return F.relu(self.branch2c(y) + (x if self.branch1 is None else self.branch1(x)), inplace=True)


def vnect_lite(joints: int = 21) -> VNect:
    """Cells of 8 x 8 pixels; sides of crops are multiples of 32."""
    pyramid = LitePyramid(256, 16)
    return VNect(joints, width=16, backbone=pyramid)


@torch.no_grad()
def fold(network: VNect) -> VNect:
    """The same function (in eval mode) as a folded network: batch norms, but for one, have become weights and biases."""
    if network.backbone is not None:
        raise InputError("this network stands on another trunk, whose batch norms are not folded")
    folded = VNect(network.joints, True, network.width, network.depths).to(next(network.parameters()))
    state = network.state_dict()
    for name, layer in network.named_modules():
        if isinstance(layer, _SameConv) and layer.bn is not None:
            bn = layer.bn
            assert bn.running_var is not None and bn.running_mean is not None
            scale = bn.weight / (bn.running_var + bn.eps).sqrt()
            state[f"{name}.weight"] = layer.weight * scale[:, None, None, None]
            state[f"{name}.bias"] = bn.bias - bn.running_mean * scale
    folded.load_state_dict({key: state[key] for key in folded.state_dict()})
    return folded.eval()


def from_tensorflow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict in the re-implementation's scopes (res4a_branch2b.weight; matrices in PyTorch's order) in our names."""
    pattern = r"^(res(?:[234][a-f]|5[ab]))_(branch\d[a-c]?)(?:_new)?\."
    return {re.sub(pattern, r"\1.\2.", key): value for key, value in state.items()}


# ---- use -----------------------------------------------------------------------------------------------------------
def averaged(network: VNect, crops: Float[Tensor, "B 3 H W"], scales: Sequence[float] = (1.0, 0.7)) -> LocationMaps:
    """The mean of the maps of the crops and of the crops made smaller in the middle of a grey frame (0 after `normalised`)."""
    maps = []
    for scale in scales:
        out = network(_scaled_about_middle(crops, scale))
        maps.append([_scaled_about_middle(m.flatten(1, -3), 1 / scale).view_as(m) for m in out])
    return LocationMaps(*(torch.stack(same).mean(0) for same in zip(*maps, strict=True)))


def _scaled_about_middle(image: Float[Tensor, "B C H W"], scale: float) -> Float[Tensor, "B C H W"]:
    if scale == 1:
        return image
    theta = torch.eye(2, 3).to(image).expand(len(image), 2, 3) / scale
    return F.grid_sample(image, F.affine_grid(theta, list(image.shape), align_corners=False), align_corners=False)


def normalised(crop: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "3 H W"]:
    """RGB as the released weights want it: blue first, 0..1, less 0.4."""
    return torch.from_numpy(crop[..., ::-1].copy()).permute(2, 0, 1) / 255 - 0.4


@dataclass(frozen=True)
class Tracker:
    """Where in the next frame to look: a rectangle around the joints of this one, made larger, and not moved at once.

    `above` times its height is added at the top and at the bottom, `beside` times its width at each side; `momentum` is how much of
    the last rectangle stays. Below a mean height `lost` of the heat maps the whole frame is looked at again.
    """

    above: float = 0.2
    beside: float = 0.4
    momentum: float = 0.75
    lost: float = 0.1

    def next_box(
        self, box: Float[np.ndarray, "4"] | None, xy: Float[np.ndarray, "J 2"], conf: Float[np.ndarray, " J"]
    ) -> Float[np.ndarray, "4"] | None:
        """x0, y0, x1, y1 in pixels; None: the whole frame."""
        if conf.mean() < self.lost:
            return None
        low, high = xy.min(0), xy.max(0)
        # As wide as it was, but centred on the joints' mean, so that a stretched arm does not drag it along.
        shift = np.array([xy[:, 0].mean() - (low[0] + high[0]) / 2, 0.0])
        margin = (high - low) * np.array([self.beside, self.above])
        around = np.concatenate([low - margin + shift, high + margin + shift])
        return around if box is None else self.momentum * box + (1 - self.momentum) * around


@torch.no_grad()
def video(
    network: VNect,
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    rate: float,
    codec: LocationMap | None = None,
    tracker: Tracker = Tracker(),
    scales: Sequence[float] = (1.0, 0.7),
) -> tuple[Keypoints2D, Keypoints3D]:
    """The one person in RGB frames that come `rate` times a second: pixels (T, J, 2), and metres from the root (T, J, 3).

    In each frame the crop that `tracker` gives is seen at `scales`; the 2D places are filtered, the location maps read there, and
    the 3D places filtered. The filters are the paper's (cut-offs 1.7 and 0.8 Hz, beta 0.3 per px/s and 0.4): the unit of the 3D
    filter is not stated and is taken to be that of the maps, 10 mm. `fit.kinematic` makes a skeleton in the camera's frame of both.
    """
    codec = codec or LocationMap()
    filter2d, filter3d = OneEuro(rate, 1.7, 0.3), OneEuro(rate, 0.8, 0.4)
    state2d = state3d = box = None
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for frame in frames:
        matrix = _square(box, frame.shape[0], frame.shape[1])
        crop = normalised(warp_crop(frame, matrix, (SIDE, SIDE))).to(next(network.parameters()))
        maps = averaged(network, crop[None], scales)
        xy, conf = codec.places(maps.heat, (SIDE, SIDE))
        zoom, shift = float(matrix[0, 0]), xy.new_tensor(matrix[:, 2])
        state2d = filter2d.step(state2d, (xy[0] - shift) / zoom)
        xyz = codec.read(maps.location, (state2d.value * zoom + shift)[None], (SIDE, SIDE))
        state3d = filter3d.step(state3d, xyz[0] / codec.unit)
        found.append((state2d.value, state3d.value * codec.unit, conf[0].clamp_min(0)))
        box = tracker.next_box(box, state2d.value.double().cpu().numpy(), found[-1][2].double().cpu().numpy())
    if not found:
        raise InputError("a video without frames: there is nobody to find")
    xy, xyz, conf = (torch.stack(same) for same in zip(*found, strict=True))
    return Keypoints2D(xy, conf, codec.joints), Keypoints3D(xyz, conf, codec.joints, "root")


def _square(box: Float[np.ndarray, "4"] | None, height: int, width: int) -> Float[np.ndarray, "2 3"]:
    """The map from pixels of a frame to those of the square crop around a box, or around the whole frame."""
    x0, y0, x1, y1 = (-0.5, -0.5, width - 0.5, height - 0.5) if box is None else box.tolist()
    middle = torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2], dtype=torch.float64)
    side = middle.new_tensor(max(x1 - x0, y1 - y0, 16.0))
    return crop_matrix(middle, side, torch.zeros_like(side), (SIDE, SIDE)).numpy()
