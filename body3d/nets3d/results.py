"""The files of `body3d regress`."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from body3d.atomic import staged
from body3d.camera import Camera
from body3d.export import save_json, save_npz
from body3d.images import write_image
from body3d.nets3d.inference import People
from body3d.types import Keypoints2D
from body3d.view.draw import draw_keypoints
from body3d.view.plot import skeleton_views

__all__ = ["write_regressed"]


def write_regressed(
    folder: Path,
    people: People,
    camera: Camera,
    focal_source: str,
    net: str,
    image: UInt8[np.ndarray, "H W 3"],
    warning: str | None = None,
) -> None:
    """regress.npz, regress.json, regress.png (joints in the photo) and regress_N.png (from the front and from the side) into
    `folder`, all or none.

    Positions are metres in the camera's frame (x right, y down, z away from the camera).
    """
    numpy = lambda t: t.detach().cpu().numpy()
    pose, found = people.keypoints3d, people.found
    arrays = {
        "joints3d": numpy(pose.xyz), "conf": numpy(pose.conf), "joint_names": np.array(pose.joints.names),
        "root": numpy(found.root), "keypoints2d": numpy(found.xy), "K": numpy(camera.K),
    }  # fmt: skip
    if people.boxes is not None:
        arrays["boxes"] = numpy(people.boxes.xyxy)
    height, width = camera.size
    report = {
        "frame": "camera: metres, x right, y down, z away from the camera",
        "net": net,
        "joints": pose.joints.name,
        "image_size": {"height": height, "width": width},
        "focal_px": round(camera.K[0, 0].item(), 2),
        "focal_source": focal_source,
        "depth_source": people.depth_source,
        "warnings": [warning] if warning else [],
        "people": [
            {
                "root_m": [round(v, 4) for v in found.root[n].tolist()],
                "joints3d": {
                    name: {"xyz_m": [round(v, 4) for v in xyz], "conf": round(conf, 4)}
                    for name, xyz, conf in zip(
                        pose.joints.names, pose.xyz[n].tolist(), pose.conf[n].tolist(), strict=True
                    )
                },
            }
            for n in range(len(found.root))
        ],
    }
    drawn = Keypoints2D(found.xy.cpu(), (found.xy.isfinite().all(-1)).float().cpu(), pose.joints)
    with staged(folder, replaces="regress*") as draft:
        save_npz(draft / "regress.npz", arrays)
        save_json(draft / "regress.json", report)
        write_image(draft / "regress.png", draw_keypoints(image, drawn))
        for n in range(len(found.root)):
            write_image(draft / f"regress_{n}.png", skeleton_views(found.xyz[n].cpu(), pose.joints))
