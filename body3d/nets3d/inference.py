"""Direct regressors on photos: which network a checkpoint holds, and everybody in a photo by it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from body3d import skeletons
from body3d.body.definitions import NAMED_ON_BODY, mixing_matrix, mixtures
from body3d.body.model import BodyModel
from body3d.camera import Camera
from body3d.checkpoints import load_into, read_published, weights_in, what_network
from body3d.codecs.base import Size
from body3d.codecs.locationmap import LocationMap
from body3d.codecs.volume import CoarseToFine, IntegralVolume
from body3d.errors import InputError
from body3d.images import warp_crop
from body3d.nets3d import mppe, vnect, volumetric
from body3d.nets3d.builders import BUILDERS, build, vnect_368
from body3d.nets3d.methods import ByCoarseToFine, ByIntegral, ByLocationMaps
from body3d.nets3d.regressors import Regressor, RootFinder, SceneRegressor, Whole
from body3d.nets3d.views import Regressed, crop_views, scene_views
from body3d.posenet import PLAIN
from body3d.skeletons import H36M17, MPPE18, MUPOTS21, JointSet
from body3d.types import Boxes, Keypoints3D

__all__ = ["KINDS", "People", "read_regressor", "read_root_finder", "regress_photo", "usual_lengths"]

# What users call a network, and what the builders of its whole begin with.
KINDS = {"vnect": "vnect", "volumetric": "volumetric", "mppe": "posenet", "dconvmp": "dconvmp", "orpm": "orpm"}


@dataclass(frozen=True)
class People:
    """Everybody in a photo."""

    found: Regressed
    joints: JointSet
    depth_source: str  # how it is known where the roots are, in words
    boxes: Boxes | None  # None: the network looked at the whole photo

    @property
    def keypoints3d(self) -> Keypoints3D:
        """Metres in the camera's frame."""
        return Keypoints3D(self.found.xyz + self.found.root[:, None], self.found.conf, self.joints, "camera")

    def first(self, count: int | None) -> "People":
        """At most so many."""
        boxes = None if self.boxes is None else self.boxes[:count]
        return People(self.found[:count], self.joints, self.depth_source, boxes)


# ---- checkpoints ---------------------------------------------------------------------------------------------------
def read_regressor(path: Path | str, kind: str) -> Regressor | SceneRegressor:
    """The network of a training of this project (`best.pt`, `last.pt`), or of a published checkpoint where there are any: 3DMPPE's
    PoseNet, VNect in its re-implementation's names, coarse to fine in Torch7's. In eval mode. InputError if it holds another
    network.
    """
    if kind not in KINDS:
        raise InputError(f"there is no regressor {kind!r}; there are {', '.join(KINDS)}")
    net = _own(path)
    if net is None:
        net = _published(path, kind)
    elif not net.name.startswith(KINDS[kind]) or isinstance(net, RootFinder):
        raise InputError(
            f"{path} holds {net.name}, not {kind}"
            + (": it belongs to --root-weights" if isinstance(net, RootFinder) else "")
        )
    assert not isinstance(net, RootFinder)
    if isinstance(net, Regressor) and not net.lengths.any():
        net.lengths.copy_(usual_lengths(net.joints))
    return net.eval()


def read_root_finder(path: Path | str) -> RootFinder | mppe.RootNet:
    """RootNet, of a training of this project or published. InputError if it is another network."""
    net = _own(path)
    if net is None:
        return mppe.load_rootnet(path)
    if not isinstance(net, RootFinder):
        raise InputError(f"{path} holds {net.name}, not RootNet")
    return net.eval()


def _own(path: Path | str) -> Whole | None:
    """None: the file is not of a training of this project."""
    state = _trained(Path(path))
    about = state.get("_extra_state")
    if not isinstance(about, dict):
        return None
    name, joints = about.get("name"), _joint_set(about.get("joints"))
    if name not in BUILDERS or joints is None:
        raise InputError(f"{path} holds {name} with the joints {about.get('joints')}, which this version does not know")
    net = build(name, joints, _size(about.get("size")))
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} holds other weights than {name}'s: {str(error).splitlines()[-1].strip()}") from error
    return net


def _trained(path: Path) -> dict[str, Any]:
    """The state_dict in a checkpoint of this project; empty for another file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # older published files hold more than tensors: `read_published` knows which to pass over
        return {}
    state = weights_in(content) if isinstance(content, dict) else {}
    return state if isinstance(state, dict) else {}


def _size(said: object) -> Size | None:
    match said:
        case [int(height), int(width)] if all(0 < n <= 1024 and n % 32 == 0 for n in (height, width)):
            return height, width
    return None


def _joint_set(name: object) -> JointSet | None:
    sets = (value for value in vars(skeletons).values() if isinstance(value, JointSet))
    return next((joints for joints in sets if joints.name == name), None)


def _published(path: Path | str, kind: str) -> Regressor:
    state = read_published(path)
    if kind == "mppe":
        net = mppe.load_posenet(path)
        joints = {18: MPPE18, 21: MUPOTS21}.get(len(state["head.final_layer.weight"]) // net.depth)
        if joints is None:
            raise InputError(
                f"{path} has {len(state['head.final_layer.weight']) // net.depth} joints: 18 or 21 were expected"
            )
        return Regressor("posenet_256", net, ByIntegral(IntegralVolume(places="msra")), joints, (256, 256))
    if kind == "vnect":
        whole = vnect_368(MUPOTS21)
        folded = vnect.VNect(len(MUPOTS21), folded=True)
        load_into(folded, vnect.from_tensorflow(state), path)
        return Regressor(
            "vnect_368", folded, ByLocationMaps(LocationMap(MUPOTS21)), MUPOTS21, whole.size, whole.normalise
        )
    if kind == "volumetric" and all(key[:3].isdigit() for key in state):
        depths = (1, 2, 4, 64) if len({key[:3] for key in state}) > 500 else (1, 64)
        net = volumetric.Volumetric(len(H36M17), depths)
        load_into(net, volumetric.from_torch7(state, net), path)
        return Regressor("volumetric_256", net, ByCoarseToFine(CoarseToFine(depths)), H36M17, (256, 256), PLAIN)
    raise InputError(f"{path} holds {what_network(state)}, not {kind}, and no training of this project")


@cache
def usual_lengths(joints: JointSet = H36M17) -> Float[Tensor, " E"]:
    """The lengths of bones (m) of the open body's mean shape: what is taken for somebody's of whom nothing is known.

    InputError for joints that the body does not have.
    """
    model = BodyModel.open()
    found = mixtures(model.keypoints, joints, NAMED_ON_BODY)
    if missing := [name for name in joints.names if name not in found]:
        raise InputError(f"the open body has no {', '.join(missing)}, so the bones of {joints.name} are not known")
    points = model(model.zero_params(1)).joints.xyz[0]
    return volumetric.limb_lengths(mixing_matrix(found, model.keypoints.names) @ points, joints)


# ---- photos --------------------------------------------------------------------------------------------------------
@torch.no_grad()
def regress_photo(
    net: Regressor | SceneRegressor,
    image: UInt8[np.ndarray, "H W 3"],
    camera: Camera,
    boxes: Boxes | None = None,
    roots: RootFinder | mppe.RootNet | None = None,
    flip: bool = False,
) -> People:
    """Everybody in `boxes` of an RGB photo, or (ORPM) in all of it. `roots` finds how far away they are.

    InputError for a box that is empty or outside the photo.
    """
    device = next(net.parameters()).device
    size = torch.tensor([image.shape[:2]]).float()
    K = camera.K.cpu().float()[None]
    if isinstance(net, SceneRegressor):
        view = scene_views(K, size, net.size)
        found = net.regress(_crop(image, view.to_crop, net.size).to(device), view.to(device))[0].to("cpu")
        return People(found, net.joints, "the poses' size in the image", None)
    if boxes is None or not len(boxes.xyxy):
        raise InputError("a network on crops needs boxes, and there are none")
    n = len(boxes.xyxy)
    view = crop_views(boxes.xyxy.float(), K.expand(n, 3, 3), size.expand(n, 2), net.size)
    depth, source = None, "the length of the limbs"
    xywh = torch.cat([boxes.xyxy[:, :2], boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]], -1).float()
    if isinstance(roots, mppe.RootNet):
        depth = mppe.locate_roots(roots, image, xywh, camera.K)[:, 2].cpu()
    elif roots is not None:
        seen = crop_views(boxes.xyxy.float(), K.expand(n, 3, 3), size.expand(n, 2), roots.size)
        depth = roots.find(_crop(image, seen.to_crop, roots.size).to(device), seen.to(device))[:, 2].cpu()
    if depth is not None:
        source = "RootNet"
    if isinstance(net.method, ByIntegral) and net.method.codec.places == "msra":
        return _released(net, image, xywh, depth, camera, boxes, source, flip)
    found = net.regress(
        _crop(image, view.to_crop, net.size).to(device),
        view.to(device),
        None if depth is None else depth.to(device),
        flip,
    )
    if depth is None and not isinstance(net.method, ByIntegral | ByCoarseToFine):
        source = (
            "the pose's size in the image"
            if isinstance(net.method, ByLocationMaps)
            else "k: the box is taken to show 2 m"
        )
    return People(found.to("cpu"), net.joints, source, boxes)


def _released(net, image, xywh, depth, camera: Camera, boxes: Boxes, source: str, flip: bool) -> People:
    """Released weights of PoseNet see 3DMPPE's own crops. Without RootNet the depth is found from the limbs in a first pass."""
    posenet = net.net
    if depth is None:
        far = torch.full((len(xywh),), 100.0)
        first = mppe.absolute_poses(posenet, image, xywh, far, camera.K, net.joints, flip).xyz.cpu()
        xy = camera.to("cpu").project(first)
        K = camera.K.cpu().expand(len(xywh), 3, 3)
        depth = volumetric.depth_from_limbs(xy, first[..., 2] - far[:, None], K, net.lengths.cpu(), net.joints)
    pose = mppe.absolute_poses(posenet, image, xywh, depth, camera.K, net.joints, flip)
    xyz = pose.xyz.cpu()
    root = xyz[:, net.root]
    found = Regressed(xyz - root[:, None], root, camera.to("cpu").project(xyz), pose.conf.cpu())
    return People(found, net.joints, source, boxes)


def _crop(
    image: UInt8[np.ndarray, "H W 3"], matrix: Float[Tensor, "N 2 3"], size: tuple[int, int]
) -> Float[Tensor, "N 3 h w"]:
    crops = np.stack([warp_crop(image, one.double().numpy(), size) for one in matrix])
    return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
