"""People of several photos in one batch, and a focal length for several people of one photo.

What a camera does to a person is a matter of rays. So keypoints of any photo are turned into those of one common camera, fitted
there, all together, and the results are said in the photo's own pixels again. Exact for pinhole cameras with square pixels; with a
distorted lens the keypoints are undistorted first, so that their errors are taken as equal there.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.body.definitions import Mixture
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.camera import Camera
from body3d.fit.smplifyx import SMPLIFYX_STAGES, Options, fit_keypoints
from body3d.types import FitResult, Keypoints2D

__all__ = ["COMMON", "FOCALS", "focal_costs", "in_photo", "to_common"]

# Its image is so large that whatever a photo shows lies in or near it: what is far outside a photo, that photo's camera tells.
COMMON = Camera.pinhole(1000.0, (10**6, 10**6), centre=(0.0, 0.0))
FOCALS = (0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0)  # longer sides: 80 to 19 degrees wide


def to_common(keypoints: Keypoints2D, camera: Camera) -> Keypoints2D:
    """The keypoints (N, J) of a photo as the common camera would see them."""
    focal = COMMON.K[0, 0].to(keypoints.xy)
    return replace(keypoints, xy=focal * camera.unproject(keypoints.xy, torch.ones_like(keypoints.conf))[..., :2])


def in_photo(result: FitResult, camera: Camera, keypoints: Keypoints2D, warnings: Sequence[str] = ()) -> FitResult:
    """A fit in the common camera said in the photo's pixels; `keypoints` are the person's own, `warnings` come first."""
    focal = lambda c: (c.K[0, 0] * c.K[1, 1]).sqrt().item()
    scale = focal(camera) / focal(result.camera)
    return replace(
        result, camera=camera, keypoints=keypoints, reprojection_px=scale * result.reprojection_px,
        limb_px={limb: scale * px for limb, px in result.limb_px.items()}, person_px=scale * result.person_px,
        warnings=tuple(dict.fromkeys((*warnings, *result.warnings))),
    )  # fmt: skip


def focal_costs(
    model: BodyModel,
    keypoints: Keypoints2D,
    camera: Camera,
    focals: Sequence[float],
    options: Options = Options(),
    prior: MaxMixturePrior | None = None,
    on_body: dict[str, Mixture] | None = None,
    height: float | None = None,
) -> Float[Tensor, " F"]:
    """What the fit of all people costs with each focal length (px), body alone; all are fitted in one batch.

    `prior`, `on_body` and `height` are those of `fit_keypoints`.

    One person says little about it. Several, of whom each must be of a likely height and pose, say more.
    """
    cameras = [
        replace(camera, K=torch.cat([torch.cat([f * torch.eye(2).to(camera.K), camera.K[:2, 2:]], 1), camera.K[2:]]))
        for f in focals
    ]
    seen = [to_common(keypoints, c) for c in cameras]
    everybody = replace(keypoints, xy=torch.cat([s.xy for s in seen]), conf=torch.cat([s.conf for s in seen]))
    # Every keypoint is believed alike, or each camera would get the noise that excuses it.
    plain = replace(options.trust, usual_residual=None)
    options = replace(options, stages=SMPLIFYX_STAGES[:4], exchange=False, trust=plain)
    results = fit_keypoints(model, everybody, COMMON, None, prior, options, on_body, height=height)
    return keypoints.xy.new_tensor([sum(r.terms.values()) for r in results]).view(len(focals), -1).sum(1)
