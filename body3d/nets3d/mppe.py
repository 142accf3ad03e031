"""3DMPPE: 3D poses of several people in the camera's frame from their boxes: RootNet says where each root is, PoseNet the rest.

Moon, Chang & Lee, "Camera distance-aware top-down approach for 3D multi-person pose estimation from a single RGB image", ICCV 2019.
Boxes come from any detector of people. Modules bear the published names, so that released checkpoints load as they are. PoseNet is
also the network of Integral 3D (Sun et al., ECCV 2018).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from body3d import camera_conventions as conventions
from body3d.checkpoints import load_into, read_published, what_network
from body3d.codecs.base import Places, from_grid, swap_joints
from body3d.codecs.integral import expectation, flat_softmax
from body3d.codecs.volume import IntegralVolume, soft_argmax_3d
from body3d.crop import apply, crop_matrix, invert
from body3d.errors import InputError
from body3d.images import warp_crop
from body3d.layers import deconv_layers
from body3d.nets.efficientnet_lite import EfficientNetLite, LitePyramid
from body3d.nets.resnet import resnet50
from body3d.posenet import Trunk
from body3d.skeletons import MPPE18, JointSet
from body3d.types import Keypoints3D

__all__ = [
    "PoseNet", "RootNet", "absolute_poses", "flip_tested", "load_posenet", "load_rootnet", "locate_roots",
    "posenet_18", "posenet_21", "posenet_lite", "rootnet_lite",
]  # fmt: skip

SIZE, GRID = (256, 256), (64, 64)  # of a crop in pixels, of a map in cells
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AREA = 2.0**2  # square metres that a person's box is taken to show


# ---- networks ------------------------------------------------------------------------------------------------------
class PoseNet(nn.Module):
    """(B, 3, H, W) to volumes of logits, (B, joints, depth, H/4, W/4), which `codecs.volume.IntegralVolume` reads.

    A ResNet-50, three deconvolutions and a 1x1 convolution. `backbone`: another trunk, which `widths` deconvolutions bring to
    stride 4.
    """

    def __init__(
        self, joints: int, depth: int = 64, backbone: Trunk | None = None, widths: Sequence[int] = (256, 256, 256)
    ):
        super().__init__()
        self.depth = depth
        self.backbone = backbone or resnet50()
        channels = self.backbone.channels
        volumes = _small(nn.Conv2d((channels, *widths)[-1], joints * depth, 1))
        self.head = nn.ModuleDict({"deconv_layers": deconv_layers(channels, widths), "final_layer": volumes})

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B J d h w"]:
        features = self.head["deconv_layers"](self.backbone(image)[-1])
        return self.head["final_layer"](features).unflatten(1, (-1, self.depth))


class RootNet(nn.Module):
    """(B, 3, H, W) crops and their k (B,) to (B, 3): x and y of the root in cells of H/4, W/4, and its depth in the unit of k.

    k is the depth at which the box would show 2 m x 2 m; the network predicts by how much that is wrong (the depth is gamma k). x
    and y are an expectation over a map. `backbone` and `widths` as in `PoseNet`.
    """

    def __init__(self, backbone: Trunk | None = None, widths: Sequence[int] = (256, 256, 256)):
        super().__init__()
        self.backbone = backbone or resnet50()
        channels = self.backbone.channels
        self.root = nn.ModuleDict(
            {
                "deconv_layers": deconv_layers(channels, widths),
                "xy_layer": _small(nn.Conv2d((channels, *widths)[-1], 1, 1)),
                "depth_layer": _small(nn.Conv2d(channels, 1, 1)),
            }
        )

    def forward(self, image: Float[Tensor, "B 3 H W"], k: Float[Tensor, " B"]) -> Float[Tensor, "B 3"]:
        features = self.backbone(image)[-1]
        map_of_root = self.root["xy_layer"](self.root["deconv_layers"](features))
        xy = expectation(flat_softmax(map_of_root))[:, 0]
        gamma = self.root["depth_layer"](features.mean((2, 3), keepdim=True)).flatten()
        return torch.cat([xy, (gamma * k)[:, None]], 1)


def _small(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.normal_(layer.weight, std=0.001)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def posenet_18() -> PoseNet:
    """Human3.6M: `MPPE18`."""
    return PoseNet(18)


def posenet_21() -> PoseNet:
    """MuCo-3DHP: `MUPOTS21`."""
    return PoseNet(21)


def posenet_lite(joints: int = 18, depth: int = 16) -> PoseNet:
    """Cells of 8 x 8 pixels, `depth` deep; sides of crops are multiples of 32."""
    pyramid = LitePyramid(96, 8)
    return PoseNet(joints, depth, pyramid, ())


def rootnet_lite() -> RootNet:
    """For crops of 128 x 128; before training it says that the depth is k."""
    trunk = EfficientNetLite()
    network = RootNet(trunk, (64, 64, 64))
    nn.init.ones_(network.root["depth_layer"].bias)  # type: ignore[arg-type]
    return network


def load_posenet(path: Path | str) -> PoseNet:
    """The network of a published checkpoint, with as many joints as its weights say, in eval mode.

    InputError if it holds another network.
    """
    state = read_published(path)
    if "head.final_layer.weight" not in state:
        raise InputError(f"{path} holds {what_network(state)}, not PoseNet")
    network = PoseNet(len(state["head.final_layer.weight"]) // 64)
    load_into(network, state, path)
    return network.eval()


def load_rootnet(path: Path | str) -> RootNet:
    """The network of a published checkpoint, in eval mode. InputError if it holds another network."""
    state = read_published(path)
    if "root.depth_layer.weight" not in state:
        raise InputError(f"{path} holds {what_network(state)}, not RootNet")
    network = RootNet()
    load_into(network, state, path)
    return network.eval()


# ---- use -----------------------------------------------------------------------------------------------------------
def flip_tested(net: PoseNet, crops: Float[Tensor, "B 3 H W"], joints: JointSet) -> Float[Tensor, "B J 3"]:
    """(column, row, slice) of each joint, averaged with what the mirrored crop gives."""
    cells, logits = soft_argmax_3d(net(crops)), net(crops.flip(-1))
    mirrored = swap_joints(soft_argmax_3d(logits), joints.flip)
    x, rest = mirrored.split([1, 2], -1)
    return (cells + torch.cat([logits.shape[-1] - 1 - x, rest], -1)) / 2


@torch.no_grad()
def locate_roots(
    net: RootNet,
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[Tensor, "N 4"],
    K: Float[Tensor, "3 3"],
    places: Places = "msra",
) -> Float[Tensor, "N 3"]:
    """The roots of the people in `boxes` (x, y, width, height; pixels) of an RGB image, in the camera's frame (m).

    Boxes are clipped, made square and enlarged as published. `places` of the network's cells: "msra" is what released weights were
    trained with.
    """
    squares, matrices, crops = _crops(image, boxes, places, next(net.parameters()).device)
    K = K.to(crops)
    f, c = K[:2, :2].diagonal(), K[:2, 2]
    cells = net(crops, conventions.depth_factor(squares, f, AREA))
    xy = apply(invert(matrices), from_grid(cells[:, None, :2], GRID, SIZE, places))[:, 0]
    return conventions.pixel_to_camera(torch.cat([xy, cells[:, 2:]], 1), f, c)


@torch.no_grad()
def absolute_poses(
    net: PoseNet,
    image: UInt8[np.ndarray, "H W 3"],
    boxes: Float[Tensor, "N 4"],
    root_depth: Float[Tensor, " N"],
    K: Float[Tensor, "3 3"],
    joints: JointSet = MPPE18,
    flip: bool = True,
    places: Places = "msra",
) -> Keypoints3D:
    """The people in `boxes` in the camera's frame, where their roots' depths (m) are known: measured, or by `locate_roots`.

    As there, `boxes` are (x, y, width, height) in pixels of an RGB image. `flip`: with the flip test.
    """
    _, matrices, crops = _crops(image, boxes, places, next(net.parameters()).device)
    K = K.to(crops)
    cells = flip_tested(net, crops, joints) if flip else soft_argmax_3d(net(crops))
    xy, z = IntegralVolume(places=places).from_cells(cells, SIZE, (net.depth, *GRID))
    uvz = torch.cat([apply(invert(matrices), xy), (z + root_depth.to(z)[:, None]).unsqueeze(-1)], -1)
    xyz = conventions.pixel_to_camera(uvz, K[:2, :2].diagonal(), K[:2, 2])
    return Keypoints3D(xyz, torch.ones_like(z), joints, "camera")


def _crops(
    image: UInt8[np.ndarray, "H W 3"], boxes: Float[Tensor, "N 4"], places: Places, device: torch.device
) -> tuple[Float[Tensor, "N 4"], Float[Tensor, "N 2 3"], Float[Tensor, "N 3 256 256"]]:
    """The squares that the networks see of boxes, the maps from the image's pixels to theirs, and what is in them."""
    size = boxes.new_tensor([image.shape[1], image.shape[0]])
    if not ((boxes[:, :2] < size) & (boxes[:, :2] + boxes[:, 2:] > 1) & (boxes[:, 2:] > 1)).all():
        raise InputError("a box lies outside the image, or is empty: leave out people that the image does not show")
    squares = conventions.square_box(boxes.to(torch.float32), (image.shape[1], image.shape[0]))
    side = squares[:, 2]
    matrices = crop_matrix(squares[:, :2] + squares[:, 2:] / 2, side, torch.zeros_like(side), SIZE, places)
    crops = [torch.from_numpy(warp_crop(image, matrix, SIZE)) for matrix in matrices.cpu().double().numpy()]
    rgb = torch.stack(crops) if crops else torch.zeros(0, *SIZE, 3)
    rgb = rgb.to(device).permute(0, 3, 1, 2).float() / 255
    crops = (rgb - rgb.new_tensor(MEAN)[:, None, None]) / rgb.new_tensor(SPREAD)[:, None, None]
    return squares.to(device), matrices.to(device), crops
