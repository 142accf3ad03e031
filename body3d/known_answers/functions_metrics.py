"""Metrics and camera conventions that published implementations answer for."""

from collections.abc import Callable

import torch
from torch import Tensor

from body3d import camera_conventions as conventions
from body3d.camera import project_h36m
from body3d.geometry import align
from body3d.known_answers.question import Adapter, Question
from body3d.metrics import mpjpe, oks, pck, pck3d

__all__ = ["ADAPTERS"]


# ---- metrics and cameras -------------------------------------------------------------------------------------------
def _mpjpe(q: Question) -> dict[str, Tensor]:
    errors = mpjpe.joint_errors(q["pred"], q["gt"])
    return {"mean": errors.mean(), "weighted": (q["w"] * errors).mean(), "per_pose": mpjpe.mpjpe(q["pred"], q["gt"])}


def _per_pose(measure: Callable[[Tensor, Tensor], Tensor]) -> Adapter:
    def adapter(q: Question) -> dict[str, Tensor]:
        per_pose = measure(q["pred"], q["gt"])
        return {"mean": per_pose.mean(), "mean_error": per_pose.mean(), "per_pose": per_pose.flatten()}

    return adapter


def _aligned(scale: bool) -> Adapter:
    measure = _per_pose(lambda p, t: mpjpe.pa_mpjpe(p, t, scale=scale))
    return lambda q: measure(q) | {"aligned": align(q["pred"], q["gt"], scale=scale)}


def _pck_auc_3dhp(q: Question) -> dict[str, Tensor]:
    pred, gt = q["pred"], q["gt"]  # millimetres: so the thresholds are, too
    some = lambda p: p[:, q["joints14"]]
    curve = [pck3d.pck3d(some(pred), some(gt), threshold=5.0 * i).mean() for i in range(31)]
    near = mpjpe.joint_errors(pred, gt) < 150
    return {
        "pck150_14": pck3d.pck3d(some(pred), some(gt), threshold=150.0).mean(),
        "auc_14": pck3d.auc3d(some(pred), some(gt), reach=150.0).mean(),
        "pck150_17": pck3d.pck3d(pred, gt, threshold=150.0).mean(),
        "auc_17": pck3d.auc3d(pred, gt, reach=150.0).mean(),
        "mpjpe_17": mpjpe.mpjpe(pred, gt).mean(),
        "curve_14": torch.stack(curve),
        "pck_per_joint": near.double().mean(0),
    }


def _pckh(q: Question) -> dict[str, Tensor]:
    """The published table: means of left and right, then all 14 joints at 0.5 and at "0.1", which is 0.11 there."""
    target, counted = q["target"].permute(2, 0, 1), q["missing"].T == 0
    counted[:, [6, 7]] = False  # pelvis and thorax
    size = pck.head_size(q["head_boxes"].permute(2, 0, 1).flatten(1))
    per_joint, mean = pck.pck(q["pred"] + 1, target, counted, size, 0.5)
    _, strict = pck.pck(q["pred"] + 1, target, counted, size, 0.11)
    pairs = ((9, 9), (13, 12), (14, 11), (15, 10), (3, 2), (4, 1), (5, 0))
    parts = [(per_joint[a] + per_joint[b]) / 2 for a, b in pairs]
    return {"values": 100 * torch.stack([*parts, mean, strict])}


def _coco_ap(q: Question) -> dict[str, Tensor]:
    images = range(1, 101)
    people = [
        oks.Person(k.double().numpy(), float(a), tuple(b.tolist()), bool(c))
        for k, a, b, c in zip(q["gt_keypoints"], q["gt_area"], q["gt_bbox"], q["gt_iscrowd"], strict=True)
    ]
    found = [oks.Found(k.double().numpy(), float(s)) for k, s in zip(q["dt_keypoints"], q["dt_score"], strict=True)]
    per_image = lambda things, image: [
        [t for t, i in zip(things, image.tolist(), strict=True) if i == n] for n in images
    ]
    stats = oks.coco_ap(per_image(people, q["gt_image"]), per_image(found, q["dt_image"]))
    truth = q["gt_keypoints"].double()
    every = oks.oks(
        q["dt_keypoints"].double(), truth[..., :2], truth[..., 2] > 0, q["gt_area"], boxes=q["gt_bbox"].double()
    )
    # The order of the published table: by image, detections by score, people as listed.
    best_first = q["dt_score"].argsort(descending=True, stable=True).tolist()
    rows = [n for image in images for n in best_first if q["dt_image"][n] == image]
    pairs = [(n, m) for n in rows for m, image in enumerate(q["gt_image"]) if image == q["dt_image"][n]]
    dt, gt = torch.tensor(pairs).T
    numbers = torch.tensor(list(stats.values()), dtype=torch.float64)
    return {"stats": numbers, "oks": every[dt, gt], "oks_dt": dt, "oks_gt": gt}


def _oks_nms(q: Question) -> dict[str, Tensor]:
    similarity = oks.oks_between(q["keypoints"][..., :2].double(), q["area"].double())
    keep = {f"keep_{name}": oks.oks_nms(similarity, q["score"], t) for name, t in (("09", 0.9), ("05", 0.5))}
    return {"oks": similarity, **keep}


def _world_to_camera(q: Question) -> dict[str, Tensor]:
    camera = conventions.world_to_camera(q["points"], q["quaternion"], q["translation"])
    return {"camera": camera, "world": conventions.camera_to_world(q["points"], q["quaternion"], q["translation"])}


def _screen_coordinates(q: Question) -> dict[str, Tensor]:
    width, height = q["size"].tolist()
    screen = conventions.to_screen(q["uv"], width, height)
    return {"normalised": screen, "back": conventions.from_screen(screen, width, height)}


def _quaternion(q: Question) -> dict[str, Tensor]:
    return {"rotated": conventions.rotate_wxyz(q["q"], q["v"]), "inverse": conventions.inverse_wxyz(q["q"])}


def _camera_3dmppe(q: Question) -> dict[str, Tensor]:
    pixel = conventions.camera_to_pixel(q["cam"], q["f"], q["c"])
    world2cam = q["world"] @ q["R"].T + q["t"]
    return {"pixel": pixel, "back": conventions.pixel_to_camera(pixel, q["f"], q["c"]), "world2cam": world2cam}


def _bbox_k_3dmppe(q: Question) -> dict[str, Tensor]:
    width, height = q["image_size"].tolist()
    box = conventions.square_box(q["bbox"], (width, height))
    return {
        "processed": box,
        "k_value": conventions.depth_factor(box, q["f"]),
        "joint_bbox": conventions.joints_box(q["joints"][:, :2]),
    }


def _project_h36m(q: Question) -> dict[str, Tensor]:
    undistorted = q["camera"].clone()
    undistorted[..., 4:] = 0
    return {"distorted": project_h36m(q["points"], q["camera"]), "linear": project_h36m(q["points"], undistorted)}


ADAPTERS: dict[str, Adapter] = {
    "project_h36m": _project_h36m,
    "mpjpe": _mpjpe,
    "p_mpjpe": _per_pose(mpjpe.pa_mpjpe),
    "n_mpjpe": _per_pose(mpjpe.n_mpjpe),
    "velocity_error": _per_pose(mpjpe.mpjve),
    "rigid_align_3dmppe": _aligned(scale=False),
    "similarity_spin": _aligned(scale=True),
    "pck_auc_3dhp": _pck_auc_3dhp,
    "pckh": _pckh,
    "coco_ap": _coco_ap,
    "oks_nms": _oks_nms,
    "world_to_camera": _world_to_camera,
    "screen_coordinates": _screen_coordinates,
    "quaternion": _quaternion,
    "camera_3dmppe": _camera_3dmppe,
    "bbox_k_3dmppe": _bbox_k_3dmppe,
}
