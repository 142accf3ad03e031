"""The files of a reconstruction: parameters, meshes, overlay, report."""

import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from body3d.body.definitions import H36M17_ON_BODY, mixing_matrix, mixtures
from body3d.body.model import BodyModel
from body3d.pipeline import Reconstruction
from body3d.skeletons import BODY_JOINTS, H36M17
from body3d.types import FitResult, Keypoints3D
from body3d.version import __version__

__all__ = ["h36m17", "person_arrays", "report", "write_results"]


def h36m17(model: BodyModel, body_keypoints: Keypoints3D) -> Tensor:
    """Human3.6M's 17 joints of a posed body, (*B, 17, 3)."""
    found = mixtures(model.keypoints, H36M17, H36M17_ON_BODY)
    return mixing_matrix(found, model.keypoints.names).to(body_keypoints.xyz) @ body_keypoints.xyz


def person_arrays(result: FitResult, model: BodyModel) -> dict[str, np.ndarray]:
    """What `person_N.npz` holds: see docs/architecture.md, "Results"."""
    pose = dict(zip(model.joints.names, result.params.pose, strict=True))
    rows = lambda names: torch.stack([pose.get(n, result.params.transl.new_zeros(3)) for n in names]).flatten()
    hand = lambda side: [f"{side}_{f}{k}" for f in ("index", "middle", "pinky", "ring", "thumb") for k in (1, 2, 3)]
    expression = result.params.expression
    points = result.body.joints
    arrays = {
        "betas": result.params.shape,
        "expression": result.params.transl.new_zeros(10) if expression is None else expression,
        "global_orient": result.params.pose[0],
        "body_pose": rows(BODY_JOINTS),
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
    if result.joint_sigma is not None:
        out["joint_sigma"] = result.joint_sigma.detach().cpu().numpy()
    if model.expression_names:
        out["expression_names"] = np.array(model.expression_names[: len(out["expression"])])
    return out


def report(done: Reconstruction, command: str, seconds: dict[str, float]) -> dict:
    """What `report.json` holds: see docs/architecture.md, "Results"."""
    return {
        "people": [_person(p, costs) for p, costs in zip(done.people, done.genders, strict=True)],
        "image": None if done.source is None else str(done.source.resolve()),
        "image_size": {"height": done.image.shape[0], "width": done.image.shape[1]},
        "focal_px": _rounded(done.people[0].camera.K[0, 0].item()),
        "focal_source": done.focal_source,
        "body": done.models[0].kind,
        "method": done.how.method,
        "seconds": {name: round(s, 3) for name, s in seconds.items()},
        "versions": {
            "body3d": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "command": command,
    }


def _person(p: FitResult, costs: dict[str, float]) -> dict:
    out = {
        "terms": {name: _rounded(v) for name, v in p.terms.items()},
        "reprojection_px": _rounded(p.reprojection_px),
        "iterations": p.iterations,
        "converged": p.converged,
        "ambiguity": _rounded(p.ambiguity),
        "start": p.start,
        "warnings": list(p.warnings),
        "limb_px": {limb: _rounded(v) for limb, v in p.limb_px.items()},
        "unexplained_keypoints": list(p.unexplained),
        "implausible": list(p.implausible),
        "penetration_mm": {where: round(1000 * depth, 1) for where, depth in p.penetration.items()},
    }
    if p.joint_sigma is not None:
        names = p.body.joints.joints.names
        sigma = [[_rounded(v) for v in row] for row in p.joint_sigma.tolist()]
        out["joint_sigma_m"] = dict(zip(names, sigma, strict=False))
    if len(costs) > 1:
        best, *others = sorted(costs, key=lambda gender: costs[gender])
        out["gender"] = {"chosen": best, "cost_above": {g: _rounded(costs[g] / costs[best] - 1) for g in others}}
    return out


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 4)


def write_results(done: Reconstruction, folder: Path, command: str | None = None) -> dict:
    """All files of one image into `folder`; returns the report. Nothing is left half written."""
    from body3d.atomic import staged
    from body3d.export import save_glb, save_json, save_npz, save_obj
    from body3d.images import write_image
    from body3d.view.render import PALETTE, overlay

    began = time.perf_counter()
    with staged(folder, replaces="person_*") as draft:
        for n, person in enumerate(done.people):
            save_npz(draft / f"person_{n}.npz", person_arrays(person, done.models[n]))
            save_glb(draft / f"person_{n}.glb", person.body.mesh, tuple(PALETTE[n % len(PALETTE)].tolist()))
            save_obj(draft / f"person_{n}.obj", person.body.mesh)
        drawn = overlay(done.image, [p.body.mesh for p in done.people], done.people[0].camera)
        write_image(draft / "overlay.png", drawn)
        seconds = done.seconds | {"write": time.perf_counter() - began}
        out = report(done, command or " ".join(sys.argv), seconds)
        save_json(draft / "report.json", out)
    return out
