"""From an image to fitted people, and from fitted people to the files that the command line promises."""

import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import body3d
from body3d.body.definitions import H36M17_ON_BODY, MEDIAPIPE_ON_BODY, mixing_matrix, mixtures
from body3d.body.model import BodyModel
from body3d.body.priors import MaxMixturePrior
from body3d.camera import Camera
from body3d.errors import InputError
from body3d.fit.smplifyx import Options, fit
from body3d.skeletons import H36M17
from body3d.types import Detections, FitResult, Keypoints3D

BODY_KINDS = ("open", "smpl", "smplh", "smplx")


@dataclass(frozen=True)
class Reconstruction:
    """Everything that came out of one image."""

    image: np.ndarray  # (H, W, 3) uint8, upright
    source: Path | None  # the photo's file
    people: list[FitResult]  # largest person first
    model: BodyModel
    seconds: dict[str, float]  # detect, lift, fit
    focal_source: str


def load_body(kind: str = "open", path: Path | None = None, device: str = "cpu") -> BodyModel:
    """The embedded open body, or a file of the user's own."""
    if kind not in BODY_KINDS:
        raise InputError(f"unknown body {kind!r}; there are {', '.join(BODY_KINDS)}")
    if kind == "open" and path is None:
        return BodyModel.open().to(device)
    if path is None:
        raise InputError(f"--body {kind} needs --model-path FILE: the {kind.upper()} file that you registered for")
    return BodyModel.load(path, None if kind == "open" else kind).to(device)


def choose_camera(
    size: tuple[int, int], focal: float | None, fov: float | None, exif_focal: float | None
) -> tuple[Camera, str]:
    """The camera of a photo and, in words, where its focal length comes from."""
    if focal is not None and fov is not None:
        raise InputError("--focal and --fov say the same thing twice; give one of them")
    if focal is not None:
        source = f"given: {focal:g} px"
    elif fov is not None:
        source = f"given: field of view {fov:g}°"
    elif exif_focal is not None:
        focal, source = exif_focal, f"EXIF: {exif_focal:.0f} px"
    else:
        source = "guess: 1.2 × the longer side"
    try:
        return Camera.guess(size, focal, fov), source
    except ValueError as error:
        raise InputError(str(error)) from None


def reconstruct(
    image: str | Path | np.ndarray,
    body: BodyModel | None = None,
    detections: Detections | None = None,
    focal: float | None = None,
    fov: float | None = None,
    max_people: int | None = None,
    device: str = "cpu",
    prior: MaxMixturePrior | None = None,
    options: Options = Options(),
) -> list[FitResult]:
    """The people of an image, largest first, each a posed body in camera space (an empty list if nobody is found).

    `image` is a path or an RGB array (H, W, 3) uint8. `detections` replaces the embedded detector, `prior` the shipped pose
    prior. Raises InputError for an image that cannot be read.
    """
    return reconstruct_image(image, body, detections, focal, fov, max_people, device, prior, options).people


def reconstruct_image(
    image: str | Path | np.ndarray,
    body: BodyModel | None = None,
    detections: Detections | None = None,
    focal: float | None = None,
    fov: float | None = None,
    max_people: int | None = None,
    device: str = "cpu",
    prior: MaxMixturePrior | None = None,
    options: Options = Options(),
) -> Reconstruction:
    """As `reconstruct`, with the image, the model and the timings."""
    from body3d.images import exif_focal_px, read_image

    exif = None
    path = None
    if not isinstance(image, np.ndarray):
        path = Path(image)
        image = read_image(path)
        exif = exif_focal_px(path, image.shape[:2])
    camera, source = choose_camera(image.shape[:2], focal, fov, exif)
    camera = camera.to(device)
    model = body or load_body(device=device)

    began = time.perf_counter()
    embedded = detections is None
    if detections is None:
        from body3d.detect.embedded import detect_embedded

        detections = detect_embedded(image, max_people)
    detections = largest_first(detections, max_people).to(device)
    detected = time.perf_counter()
    people = []
    if len(detections):
        on_body = MEDIAPIPE_ON_BODY if embedded else None
        people = fit(model, detections.keypoints, camera, detections.world, prior, options, on_body)
    seconds = {"detect": detected - began, "lift": 0.0, "fit": time.perf_counter() - detected}
    return Reconstruction(image, path, people, model, seconds, source)


def largest_first(detections: Detections, max_people: int | None = None) -> Detections:
    """Sorted by the area of the box; the `max_people` largest."""
    size = (detections.boxes.xyxy[:, 2:] - detections.boxes.xyxy[:, :2]).clamp_min(0)
    order = size.prod(-1).argsort(descending=True, stable=True)
    return detections[order[:max_people]]


def h36m17(model: BodyModel, body_keypoints: Keypoints3D) -> Tensor:
    """Human3.6M's 17 joints of a posed body, (*B, 17, 3)."""
    found = mixtures(model.keypoints, H36M17, H36M17_ON_BODY)
    return mixing_matrix(found, model.keypoints.names).to(body_keypoints.xyz) @ body_keypoints.xyz


def person_arrays(result: FitResult, model: BodyModel) -> dict[str, np.ndarray]:
    """What `person_N.npz` holds: see docs/architecture.md, "Results"."""
    pose = dict(zip(model.joints.names, result.params.pose, strict=True))
    rows = lambda names: torch.stack([pose.get(n, result.params.transl.new_zeros(3)) for n in names]).flatten()
    hand = lambda side: [f"{side}_{f}{k}" for f in ("index", "middle", "pinky", "ring", "thumb") for k in (1, 2, 3)]
    from body3d.skeletons import SMPLX55

    expression = result.params.expression
    points = result.body.joints
    arrays = {
        "betas": result.params.shape,
        "expression": result.params.transl.new_zeros(10) if expression is None else expression,
        "global_orient": result.params.pose[0],
        "body_pose": rows(SMPLX55.names[1:22]),
        "left_hand_pose": rows(hand("left")),
        "right_hand_pose": rows(hand("right")),
        "jaw_pose": rows(["jaw"]),
        "leye_pose": rows(["left_eye_smplhf"]),
        "reye_pose": rows(["right_eye_smplhf"]),
        "transl": result.params.transl,
        "K": result.camera.K,
        "joints3d": points.xyz,
        "h36m17": h36m17(model, points),
        "vertices": result.body.mesh.verts,
        "faces": result.body.mesh.faces,
        "keypoints2d": torch.cat([result.keypoints.xy, result.keypoints.conf[..., None]], -1),
    }
    out = {name: value.detach().cpu().numpy() for name, value in arrays.items()}
    out["joint_names"] = np.array(points.joints.names)
    out["keypoint_names"] = np.array(result.keypoints.joints.names)
    out["model"] = np.array(model.kind)
    if model.expression_names:
        out["expression_names"] = np.array(model.expression_names[: len(out["expression"])])
    return out


def report(done: Reconstruction, command: str, seconds: dict[str, float]) -> dict:
    """What `report.json` holds."""
    rounded = lambda v: None if v is None or not np.isfinite(v) else round(v, 4)
    return {
        "people": [
            {
                "terms": {name: rounded(v) for name, v in p.terms.items()},
                "reprojection_px": rounded(p.reprojection_px),
                "iterations": p.iterations,
                "converged": p.converged,
                "ambiguity": rounded(p.ambiguity),
                "start": p.start,
                "warnings": list(p.warnings),
            }
            for p in done.people
        ],
        "image": None if done.source is None else str(done.source.resolve()),
        "image_size": {"height": done.image.shape[0], "width": done.image.shape[1]},
        "focal_px": rounded(done.people[0].camera.K[0, 0].item()),
        "focal_source": done.focal_source,
        "body": done.model.kind,
        "seconds": {name: round(s, 3) for name, s in seconds.items()},
        "versions": {
            "body3d": body3d.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "command": command,
    }


def write_results(done: Reconstruction, folder: Path, command: str | None = None) -> dict:
    """All files of one image into `folder`; returns the report. Nothing is left half written."""
    from body3d.atomic import staged
    from body3d.export import save_glb, save_json, save_npz, save_obj
    from body3d.images import write_image
    from body3d.view.render import PALETTE, overlay

    began = time.perf_counter()
    with staged(folder, replaces="person_*") as draft:
        for n, person in enumerate(done.people):
            save_npz(draft / f"person_{n}.npz", person_arrays(person, done.model))
            save_glb(draft / f"person_{n}.glb", person.body.mesh, tuple(PALETTE[n % len(PALETTE)].tolist()))
            save_obj(draft / f"person_{n}.obj", person.body.mesh)
        drawn = overlay(done.image, [p.body.mesh for p in done.people], done.people[0].camera)
        write_image(draft / "overlay.png", drawn)
        seconds = done.seconds | {"write": time.perf_counter() - began}
        out = report(done, command or " ".join(sys.argv), seconds)
        save_json(draft / "report.json", out)
    return out
