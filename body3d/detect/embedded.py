"""The default front end: everybody in an image with whole-body keypoints, by MediaPipe's networks and no MediaPipe."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from body3d.detect.body import Pose
from body3d.detect.boxes import checked
from body3d.detect.details import find_face, find_hands
from body3d.detect.people import find_people, person_in_box
from body3d.detect.tflite import Networks, load_networks
from body3d.errors import InputError
from body3d.skeletons import COCO_WHOLEBODY133, FACE68, FEET23, HAND21, MEDIAPIPE33
from body3d.types import Boxes, Detections, Keypoints2D, Keypoints3D
from body3d.weights import embedded_folder

__all__ = ["detect_embedded"]

SURE_FACE = 0.8
EYES_AND_NOSE = {
    "nose": ("nose_bridge_3",),
    "left_eye": ("left_eye_inner", "left_eye_outer"),
    "right_eye": ("right_eye_inner", "right_eye_outer"),
}


def detect_embedded(
    image: np.ndarray | Tensor, max_people: int | None = None, boxes: Boxes | None = None
) -> Detections:
    """The people of an RGB image (uint8, H x W x 3), best first: COCO-WholeBody keypoints, boxes, and BlazePose's own
    3D as `world`.

    `max_people` keeps those that stand out most by size and score. With `boxes` (pixels) there is no search: one person
    per box, in the boxes' order. Confidence 0 marks what was not seen; the small toes are always 0, because these
    networks do not know them. The networks are fetched at the first call; `InputError` says what to do where that
    cannot be, and which box is empty, not finite or wholly outside the image.
    """
    pixels = np.ascontiguousarray(image if isinstance(image, np.ndarray) else image.cpu().numpy())
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InputError(f"image: got {pixels.dtype} {pixels.shape}, expected uint8 RGB (H, W, 3)")
    given = None if boxes is None else checked(boxes, pixels.shape[:2])
    networks = load_networks(embedded_folder())
    if given is None:
        poses = find_people(networks, pixels, max_people)
    else:
        poses = [person_in_box(networks, pixels, box) for box in given.double().numpy()]
    people = [whole_body(networks, pixels, pose) for pose in poses]
    n = len(people)
    xy = np.array([p[0] for p in people]).reshape(n, len(COCO_WHOLEBODY133), 2)
    conf = np.array([p[1] for p in people]).reshape(n, len(COCO_WHOLEBODY133))
    world = np.array([p.world for p in poses]).reshape(n, len(MEDIAPIPE33), 3)
    world_conf = np.array([p.conf for p in poses]).reshape(n, len(MEDIAPIPE33))
    found = Boxes(tensor([around(*p) for p in people]).reshape(n, 4), tensor([p.score for p in poses]))
    return Detections(
        Keypoints2D(tensor(xy), tensor(conf), COCO_WHOLEBODY133),
        found if given is None else Boxes(given, found.score),
        Keypoints3D(tensor(world), tensor(world_conf), MEDIAPIPE33, "root"),
    )


def tensor(values) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def whole_body(
    networks: Networks, image: UInt8[np.ndarray, "H W 3"], pose: Pose
) -> tuple[Float[np.ndarray, "133 2"], Float[np.ndarray, " 133"]]:
    """Body, feet, face and hands of one person in COCO-WholeBody's order, pixels and confidence."""
    xy, conf = np.zeros((len(COCO_WHOLEBODY133), 2)), np.zeros(len(COCO_WHOLEBODY133))

    def put(names: tuple[str, ...], points: Float[np.ndarray, "K 2"], weight: Float[np.ndarray, " K"]) -> None:
        at = COCO_WHOLEBODY133.indices(names)
        xy[at], conf[at] = points, weight

    # BlazePose's eye corners and knuckles are left to the face and hand networks.
    body = tuple(n for n in FEET23.names if n in MEDIAPIPE33)
    rows = MEDIAPIPE33.indices(body)
    put(body, pose.xy[rows], pose.conf[rows])
    if (face := find_face(networks, image, pose)) is not None:
        put(FACE68.names, face.xy, face.conf)
        if face.presence > SURE_FACE:  # the face network sees the nose and the eyes better than the body's does
            for name, points in EYES_AND_NOSE.items():
                xy[COCO_WHOLEBODY133.index(name)] = face.xy[FACE68.indices(points)].mean(0)
    for side, hand in find_hands(networks, image, pose).items():
        put(HAND21[side].names, hand.xy, hand.conf)
    return xy, conf


def around(xy: Float[np.ndarray, "133 2"], conf: Float[np.ndarray, " 133"]) -> Float[np.ndarray, " 4"]:
    """The box around the keypoints that are seen, a tenth larger on each side."""
    seen = xy[conf > 0.3] if (conf > 0.3).sum() >= 4 else xy[conf > 0]
    low, high = seen.min(0), seen.max(0)
    margin = 0.1 * (high - low).max()
    return np.concatenate([low - margin, high + margin])
