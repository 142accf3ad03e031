"""The files of `body3d lift`."""

from pathlib import Path

import numpy as np

from body3d.atomic import staged
from body3d.camera import Camera
from body3d.export import save_json, save_npz
from body3d.images import write_image
from body3d.lift.embedded import Lifted
from body3d.types import Detections
from body3d.view.plot import skeleton_views

__all__ = ["write_lifted"]


def write_lifted(folder: Path, lifted: Lifted, detections: Detections, camera: Camera, focal_source: str) -> None:
    """lift.npz, lift.json and lift_N.png (from the front and from the side) into `folder`, all or none.

    Positions are metres from the middle of the hips in camera axes (x right, y down, z away from the camera).
    """
    numpy = lambda t: t.detach().cpu().numpy()
    arrays = {
        "joints3d": numpy(lifted.body.xyz), "joint_names": np.array(lifted.body.joints.names),
        "sigma": numpy(lifted.sigma), "known": numpy(lifted.known),
        "h36m17": numpy(lifted.h36m17.xyz), "h36m17_names": np.array(lifted.h36m17.joints.names),
        "keypoints2d": np.concatenate([numpy(detections.keypoints.xy), numpy(detections.keypoints.conf)[..., None]], -1),
        "keypoint_names": np.array(detections.keypoints.joints.names), "K": numpy(camera.K),
    }  # fmt: skip
    people = [
        {
            "known": bool(lifted.known[n] > 0),
            "joints3d": {
                name: {"xyz_m": [round(v, 4) for v in xyz], "sigma_m": round(s, 4)}
                for name, xyz, s in zip(
                    lifted.body.joints.names, lifted.body.xyz[n].tolist(), lifted.sigma[n].tolist(), strict=True
                )
            },
        }
        for n in range(len(detections))
    ]
    height, width = camera.size
    report = {
        "frame": "root: metres from the middle of the hips, x right, y down, z away from the camera",
        "image_size": {"height": height, "width": width},
        "focal_px": round(camera.K[0, 0].item(), 2),
        "focal_source": focal_source,
        "people": people,
    }
    with staged(folder, replaces="lift*") as draft:
        save_npz(draft / "lift.npz", arrays)
        save_json(draft / "lift.json", report)
        for n in range(len(detections)):
            write_image(draft / f"lift_{n}.png", skeleton_views(lifted.h36m17.xyz[n].cpu(), lifted.h36m17.joints))
