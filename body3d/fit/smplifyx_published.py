"""SMPLify-X as published: a body with hands and face from the keypoints of one photo (Pavlakos et al., CVPR 2019).

The paper's objective, with the weights, the five stages and the settings of the authors' release (`fit_smplx.yaml`), which the
paper does not print. Where the two differ, this follows the release:
* a keypoint counts with the square of weight × confidence (paper: with their product), the robustifier is of each coordinate;
* bending is exp(2 θ), the square of the paper's exp(θ), with a factor that is not squared (SMPLify squares it);
* the hands' prior is of the rotation vectors that their components stand for, which is the same for orthonormal components;
* the cone field is to the eighth power (paper: the fourth).
What the release gets wrong is left out: it may save the mesh of the orientation that lost, compares the orientations by what
the last call of the solver began with, and reads some numbers of its table as text.

The fit that this package uses for photos, with other weights and all people at once, is `body3d.fit.smplifyx`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from body3d.body.conic import conic_field
from body3d.body.definitions import Mixture
from body3d.body.model import BodyModel
from body3d.body.parts import PUBLISHED_IGNORED, Parts, body_parts
from body3d.body.triangles import colliding_pairs, stack_pairs
from body3d.camera import Camera
from body3d.fit.published import Objective, PoseSpace, Stage, Unknowns, l2_pose, objective
from body3d.fit.published_person import PublishedFit, Schedule, fit_person
from body3d.skeletons import JAW17
from body3d.types import Keypoints2D

__all__ = ["SMPLIFYX_STAGES", "SmplifyxOptions", "cone_penetration", "smplifyx", "smplifyx_objective", "zero_unknowns"]


def _stage(
    pose: float, shape: float, jaw: float, hand_joints: float = 0.0, face_joints: float = 0.0, penetration: float = 0.0
) -> Stage:
    """A row of the table: expression weighs as shape, the hands as the body, the jaw's other axes ten times its opening."""
    return Stage(
        pose, shape, 3.17 * pose, shape, pose, (jaw, 10 * jaw, 10 * jaw), hand_joints, face_joints, penetration
    )


SMPLIFYX_STAGES = (
    _stage(404.0, 100.0, 4.04e3),
    _stage(404.0, 50.0, 4.04e3),
    _stage(57.4, 10.0, 574.0),
    _stage(4.78, 5.0, 47.8, hand_joints=0.1, penetration=0.01),
    _stage(4.78, 5.0, 47.8, hand_joints=2.0, face_joints=2.0, penetration=1.0),
)
OfMesh = Callable[[Float[Tensor, "B V 3"]], Float[Tensor, " B"]]
CONE = 1e-4  # metres: the cones' height
IGNORED = ("neck", "left_hip", "right_hip")


@dataclass(frozen=True)
class SmplifyxOptions:
    """The published settings."""

    stages: tuple[Stage, ...] = SMPLIFYX_STAGES
    schedule: Schedule = field(default_factory=Schedule)
    sigma: float = 100.0  # pixels, of the robustifier
    num_shape: int = 10
    num_expression: int = 10
    hand_components: int = 12  # of each hand, at most
    contour: bool = False  # whether the face's outline is compared too
    side_view_px: float = 25.0  # shoulders closer than this: both orientations are tried


def smplifyx(
    model: BodyModel,
    keypoints: Keypoints2D,
    camera: Camera,
    pose: PoseSpace | None = None,
    penetration: OfMesh | None = None,
    options: SmplifyxOptions = SmplifyxOptions(),
    on_body: Mapping[str, Mixture] | None = None,
    orient: Float[Tensor, "N 3"] | None = None,
) -> list[PublishedFit]:
    """One result for each person of `keypoints` (N, J), fitted one after another, in camera space.

    `camera` is the photo's (R = 1, t = 0); published is a focal length of 5000 pixels (`published.published_camera`). `pose` says
    how the body's pose is written: `published.vposer_pose` as in the paper, `mixture_pose` or `l2_pose`; None is the last, which
    needs no file. `penetration` gives what each mesh costs for passing through itself, before the weight: published is
    `cone_penetration`; without it the term is left out. `on_body` says where keypoints lie on the body where their names do not.
    `orient` is the root's rotation at which the camera's step begins; published is zero, which stands on its head in the photo.

    The published keypoints are OpenPose's 25 of the body, 42 of the hands and 51 of the face (`OPENPOSE137`); of other sets those
    count that the body has. Parts that a body has not are left out. InputError for a person of whom no shoulder is known with the
    hip of its side.
    """
    pose = pose or l2_pose(model)
    target = smplifyx_objective(model, pose, keypoints, camera, penetration, options, on_body)
    start = zero_unknowns(model, pose, options)
    orient = target.xy.new_zeros(len(target.xy), 3) if orient is None else orient
    return [
        fit_person(
            target.person(n), keypoints[n], start | {"global_orient": orient[n : n + 1]}, options.stages, options.schedule,
            options.side_view_px, "objective",
        )
        for n in range(len(target.xy))
    ]  # fmt: skip


def smplifyx_objective(
    model: BodyModel,
    pose: PoseSpace,
    keypoints: Keypoints2D,
    camera: Camera,
    penetration: OfMesh | None = None,
    options: SmplifyxOptions = SmplifyxOptions(),
    on_body: Mapping[str, Mixture] | None = None,
) -> Objective:
    """What people (B, J) cost. Residuals count in thousandths of the image's height, the robustifier is in pixels."""
    of_mesh = (lambda _params, body: penetration(body.mesh.verts)) if penetration else None
    return objective(
        model, pose, keypoints, camera, 1000 / camera.size[0], options.sigma, IGNORED,
        () if options.contour else JAW17, on_body, penetration=of_mesh,
    )  # fmt: skip


def zero_unknowns(model: BodyModel, pose: PoseSpace, options: SmplifyxOptions = SmplifyxOptions()) -> Unknowns:
    """Where the authors start, one row: the mean body and hands, the pose's own start, the root not turned."""
    sizes = {"global_orient": 3, "betas": min(options.num_shape, model.num_shape)}
    if model.hand_components is not None:
        components = min(options.hand_components, model.hand_components.shape[1])
        sizes |= {f"{side}_hand_pose": components for side in ("left", "right")}
    if "jaw" in model.joints:
        sizes |= {"jaw_pose": 3, "leye_pose": 3, "reye_pose": 3}
    if model.num_expression:
        sizes["expression"] = min(options.num_expression, model.num_expression)
    return {name: model.template.new_zeros(1, size) for name, size in sizes.items()} | {"pose": pose.start[None]}


def cone_penetration(model: BodyModel, parts: Parts | None = None, released: bool = True) -> OfMesh:
    """SMPLify-X's collision term: the cone field of all pairs of triangles that cross, found anew for every mesh.

    `parts` says which triangles may: `read_parts` of the published segmentation; None makes one from the skinning weights, with the
    published exceptions. Without `released` it is the paper's field (`body.conic`). The release looks at up to 128 crossings of a
    triangle; here none is left out.
    """
    parts = parts or body_parts(model, PUBLISHED_IGNORED, creases=False)

    def cost(verts: Float[Tensor, "B V 3"]) -> Float[Tensor, " B"]:
        found = [colliding_pairs(mesh, parts) for mesh in verts.detach().double().cpu().numpy()]
        return conic_field(verts[:, model.faces], stack_pairs(found, verts.device), CONE, released=released).sum(-1)

    return cost
