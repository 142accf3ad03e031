"""The values that flow through the pipeline. Every tensor field is annotated; `*B` is any number of batch dimensions.

Axes: camera space is OpenCV's (x right, y down, z forward); a body model's own space is y up, +x to the body's left, +z to its
front. Metres, radians, pixels (pixel centres at the integers).
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from body3d.camera import Camera
from body3d.skeletons import JointSet, convert_points
from body3d.tensors import Tensors

__all__ = [
    "Boxes",
    "Keypoints2D",
    "Keypoints3D",
    "Detections",
    "BodyParams",
    "Mesh",
    "Body",
    "Sample",
    "FitResult",
    "Tensors",
]

Frame = Literal["camera", "world", "root"]


@dataclass(frozen=True)
class Boxes(Tensors):
    xyxy: Float[Tensor, "*B 4"]  # pixels; continuous edges: the pixel at 0 reaches from -0.5 to 0.5
    score: Float[Tensor, "*B"]


@dataclass(frozen=True)
class Keypoints2D(Tensors):
    xy: Float[Tensor, "*B J 2"]  # pixels
    conf: Float[Tensor, "*B J"]  # 0 is "unknown"
    joints: JointSet

    def convert(self, target: JointSet) -> "Keypoints2D":
        return Keypoints2D(*convert_points(self.xy, self.conf, self.joints, target), target)


@dataclass(frozen=True)
class Keypoints3D(Tensors):
    xyz: Float[Tensor, "*B J 3"]  # metres
    conf: Float[Tensor, "*B J"]  # 0 is "unknown"
    joints: JointSet
    frame: Frame

    def convert(self, target: JointSet) -> "Keypoints3D":
        return Keypoints3D(*convert_points(self.xyz, self.conf, self.joints, target), target, self.frame)


@dataclass(frozen=True)
class Detections(Tensors):
    """The people of one image, best first: what every detector returns."""

    keypoints: Keypoints2D  # xy (N, J, 2)
    boxes: Boxes  # xyxy (N, 4)
    world: Keypoints3D | None = None  # the detector's own 3D, (N, K, 3), root-relative, camera axes

    def __len__(self) -> int:
        return len(self.boxes.score)


@dataclass(frozen=True)
class BodyParams(Tensors):
    pose: Float[Tensor, "*B J 3"]  # rotation vectors, root first, one per joint of the model's tree
    shape: Float[Tensor, "*B S"]
    transl: Float[Tensor, "*B 3"]  # metres
    expression: Float[Tensor, "*B E"] | None = None


@dataclass(frozen=True)
class Mesh(Tensors):
    verts: Float[Tensor, "*B V 3"]  # metres
    faces: Int[Tensor, "F 3"]

    def __getitem__(self, i) -> "Mesh":
        """One of a batch: the faces are shared by all."""
        return Mesh(self.verts[i], self.faces)


@dataclass(frozen=True)
class Body(Tensors):
    mesh: Mesh
    joints: Keypoints3D
    T_world_joint: Float[Tensor, "*B J 4 4"]


@dataclass(frozen=True)
class Sample(Tensors):
    """What every data set yields; what a set does not have is None."""

    id: str
    image: Tensor | None = None
    box: Boxes | None = None
    kp2d: Keypoints2D | None = None
    kp3d: Keypoints3D | None = None
    params: BodyParams | None = None
    camera: Camera | None = None


@dataclass(frozen=True)
class FitResult(Tensors):
    """One fitted person: what every fitter returns."""

    params: BodyParams
    camera: Camera
    keypoints: Keypoints2D  # what was fitted to
    body: Body  # the posed body in camera space
    terms: dict[str, float]  # each term of the objective at the solution, weights included
    reprojection_px: float  # median distance of the confident keypoints
    iterations: int
    converged: bool
    ambiguity: (
        float | None
    )  # relative cost gap to the best clearly different solution; small = ambiguous; None: one start
    seconds: float
    start: str = "mean pose"  # which start won
    model: str = "open"
    warnings: tuple[str, ...] = field(default=())
    # How sure the fit is, as standard deviations; None: not worked out.
    joint_sigma: Float[Tensor, "J 3"] | None = None  # metres, camera axes (depth last), of the tree's joints
    joint_sigma_from_root: Float[Tensor, "J 3"] | None = None  # the same, of places relative to the root
    params_sigma: BodyParams | None = None  # of each parameter: radians, coefficients, metres
    # What the fit does not explain.
    limb_px: dict[str, float] = field(default_factory=dict)  # median distance of each limb's known keypoints
    unexplained: tuple[str, ...] = ()  # confident keypoints far from the body's
    implausible: tuple[str, ...] = ()  # joints bent further than people's, in words
    penetration: dict[str, float] = field(default_factory=dict)  # "left_forearm in torso": metres
    # What distances from the keypoints are judged by.
    pulled: tuple[str, ...] = ()  # the names of the keypoints that pulled
    person_px: float = math.nan  # the height in pixels of a standing adult where the person is
    belief: float = 1.0  # in the keypoints: where it is half they are twice as unsure
    exchanged: str = ""  # the limbs whose left and right keypoints were taken for each other: "arms" or "legs"
