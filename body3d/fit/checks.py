"""What is looked at before a fit: cameras, keypoints and heights that cannot be meant are refused or said."""

import math
from collections.abc import Sequence

import torch

from body3d.body.model import BodyModel
from body3d.camera import Camera
from body3d.errors import InputError
from body3d.fit.problem import STANDING_HEIGHT, Problem
from body3d.skeletons import HAND_POINTS
from body3d.types import Keypoints2D

__all__ = ["check_camera", "check_height", "cleaned", "focal_warning"]

FEWEST = 4  # known body points that a fit needs
FAR_OUTSIDE = 2.0  # longer sides beyond the image's edge: no detector means such a point
PLAUSIBLE_FOCAL = (0.3, 10.0)  # times the longer side: 118 to 6 degrees wide
TALLEST, SMALLEST = 2.6, 0.4  # metres


def focal_warning(camera: Camera, keypoints: Keypoints2D | None = None) -> str | None:
    """A warning in words if no usual lens has this focal length, with the distance it would put the people at; else None."""
    longer, focal = max(camera.size), camera.K[..., 0, 0].max().item()
    low, high = PLAUSIBLE_FOCAL
    if low * longer <= focal <= high * longer:
        return None
    hint = "millimetres given as pixels?" if focal < low * longer else "is the image a crop, or smaller than it was?"
    message = f"a focal length of {focal:g} px is {focal / longer:.2g} times the longer side of the image: {hint}"
    if keypoints is not None:
        rows = keypoints.xy.reshape(-1, keypoints.xy.shape[-2], 2)
        known = (keypoints.conf.reshape(len(rows), -1) > 0) & rows.isfinite().all(-1)
        extent = [(r[k, 1].max() - r[k, 1].min()).item() for r, k in zip(rows, known, strict=True) if k.any()]
        if extent and max(extent) > 0:
            message += f"; the nearest person would be {focal * STANDING_HEIGHT / max(extent):.2g} m away"
    return message


def check_camera(camera: Camera) -> None:
    """InputError for a camera that projects nothing, and for one that is turned or moved: fits are in the camera's own frame."""
    K = camera.K
    if K.shape != (3, 3):
        raise InputError(f"one camera is expected for all people of a photo, K of shape (3, 3); got {tuple(K.shape)}")
    flat = K.isfinite().all() and K[0, 0] > 0 and K[1, 1] > 0 and torch.linalg.det(K[:2, :2].double()).abs() > 1e-9
    if not flat:
        raise InputError(
            f"the camera matrix cannot be inverted: {K[:2, :2].tolist()}; focal lengths are positive numbers of pixels"
        )
    if camera.distortion is not None and not camera.distortion.isfinite().all():
        raise InputError("the camera's distortion holds numbers that are not finite")
    if not (torch.equal(camera.R, torch.eye(3).to(camera.R)) and (camera.t == 0).all()):
        raise InputError(
            "a fit is in the camera's own frame: R = 1 and t = 0 are expected; turn and move its results instead"
        )


def check_height(height: float | None) -> None:
    """InputError for what is no person's height in metres."""
    if height is not None and not (math.isfinite(height) and SMALLEST <= height <= TALLEST):
        raise InputError(
            f"a height of {height:g} m was given; people are {SMALLEST} to {TALLEST} m tall (centimetres?)"
        )


def cleaned(keypoints: Keypoints2D, camera: Camera, model: BodyModel) -> tuple[Keypoints2D, list[list[str]]]:
    """Keypoints whose confidences can be used as they are, and for each person what was changed, in words."""
    if keypoints.xy.ndim != 3 or keypoints.xy.shape[1] != len(keypoints.joints):
        raise InputError(
            f"keypoints of N people are (N, {len(keypoints.joints)}, 2) for {keypoints.joints.name}; "
            f"got {tuple(keypoints.xy.shape)}"
        )
    xy = keypoints.xy
    finite = xy.isfinite().all(-1)
    conf = torch.where(finite, keypoints.conf.nan_to_num().clamp(0.0, 1.0), 0.0)
    size = xy.new_tensor([camera.size[1], camera.size[0]])
    outside = FAR_OUTSIDE * size.max()
    far = finite & ((xy < -outside) | (xy > size + outside)).any(-1) & (conf > 0)
    conf = torch.where(far, 0.0, conf)
    hands = [i for i, n in enumerate(keypoints.joints.names) if any(n in points for points in HAND_POINTS.values())]
    handless = "left_index1" not in model.joints
    notes = []
    for n in range(len(xy)):
        said = []
        if far[n].any():
            names = [keypoints.joints.names[i] for i in far[n].nonzero()[:, 0].tolist()]
            said.append(f"keypoints far outside the image were left out: {', '.join(names)}")
        if handless and (conf[n, hands] > 0).any():
            said.append(f"the {model.kind} model has no fingers: keypoints of hands do not bend them")
        notes.append(said)
    return Keypoints2D(xy.nan_to_num(0.0, 0.0, 0.0), conf, keypoints.joints), notes


def check_enough(problem: Problem, numbers: Sequence[int]) -> None:
    """InputError for a person with too few known points that the model has; `numbers` are by which the problem's are called."""
    usable = ((problem.conf > 0) & problem.is_body).sum(1)
    if len(problem.names) == 0 or (usable < FEWEST).any():
        few = int(usable.argmin())
        raise InputError(
            f"person {numbers[few]} has {int(usable.min())} known body points that the {problem.model.kind} model has; "
            f"a fit needs at least {FEWEST}"
        )
