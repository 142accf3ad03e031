"""Hands and faces: crops guessed from the body's joints, landmarks by MediaPipe's hand and face-mesh networks.

MediaPipe Hands: Zhang et al. 2020 (arXiv:2006.10214); face mesh: Kartynnik et al. 2019 (arXiv:1907.06724).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from body3d.detect.body import Pose
from body3d.detect.crops import Roi
from body3d.detect.tflite import Networks, sigmoid
from body3d.skeletons import FACE68, HAND21, MEDIAPIPE33

__all__ = ["Part", "find_face", "find_hands", "FACE68_FROM_MESH"]

Image = UInt8[np.ndarray, "H W 3"]

# The mesh's vertex at each iBUG-68 point, in FACE68's order.
FACE68_FROM_MESH = np.array([
    162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,  # jaw, from the right ear
    71, 63, 105, 66, 107, 336, 296, 334, 293, 301,  # brows
    168, 197, 5, 4, 75, 97, 2, 326, 305,  # bridge and base of the nose
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181,  # outer lips
    78, 82, 13, 312, 308, 317, 14, 87,  # inner lips
])  # fmt: skip
RIGHT_EYE, LEFT_EYE = 33, 263  # outer corners in the mesh
FACE_MARGIN, HAND_MARGIN = 1.5, 2.0  # crop side relative to the landmarks' extent, as these networks were trained
HAND_GUESS_MARGIN = 2.7  # the same for the square that reaches from the knuckles to the wrist and as far beyond
LEAST_PIXELS = 12  # a face or hand crop smaller than this has nothing to show
LEAST_PRESENCE = 0.3


@dataclass(frozen=True)
class Part:
    """A hand or a face of one person."""

    xy: Float[np.ndarray, "K 2"]  # image pixels
    conf: Float[np.ndarray, " K"]
    presence: float
    roi: Roi


def joint(pose: Pose, name: str) -> Float[np.ndarray, " 2"]:
    return pose.xy[MEDIAPIPE33.index(name)]


# ---- face ----------------------------------------------------------------------------------------------------------
def find_face(networks: Networks, image: Image, pose: Pose) -> Part | None:
    """68 points in FACE68's order, None where no face shows."""
    eyes = joint(pose, "left_eye_outer"), joint(pose, "right_eye_outer")
    mouth = (joint(pose, "mouth_left") + joint(pose, "mouth_right")) / 2
    between = (eyes[0] + eyes[1]) / 2
    ears = float(np.hypot(*(joint(pose, "left_ear") - joint(pose, "right_ear"))))
    width = max(ears, 1.6 * float(np.hypot(*(eyes[0] - eyes[1]))), 2.0 * float(np.hypot(*(mouth - between))))
    center = (between + mouth) / 2
    best = None
    starts = [Roi.upright(mouth, between, center, 2.0 * width)]
    starts += face_starts(networks, image, Roi(float(center[0]), float(center[1]), 4.0 * width), center, width)
    for start in starts:
        part = None
        roi = start
        for _ in range(2):
            if roi.size < LEAST_PIXELS:
                break
            part = look_at_face(networks, image, roi)
            roi = face_roi(part.xy)
        if part is not None and (best is None or part.presence > best.presence):
            best = part
    if best is None or best.presence < LEAST_PRESENCE or np.hypot(*(best.xy.mean(0) - center)) > width:
        return None
    return Part(best.xy[FACE68_FROM_MESH], np.full(len(FACE68), best.presence), best.presence, best.roi)


def face_starts(
    networks: Networks, image: Image, around: Roi, center: Float[np.ndarray, " 2"], width: float
) -> list[Roi]:
    """The crop around the face that the face detector sees nearest to where the body has its face, if it sees one."""
    points, _ = networks.face_detector.detect(image, around, 0.3)
    if not len(points):
        return []
    middles = points[:, :2].mean(1)
    nearest = int(np.hypot(*(middles - center).T).argmin())
    box, right_eye, left_eye = points[nearest, :2], points[nearest, 2], points[nearest, 3]
    if np.hypot(*(middles[nearest] - center)) > 0.7 * width:
        return []
    return [roi_along_eyes(right_eye, left_eye, middles[nearest], FACE_MARGIN * float(np.ptp(box, 0).max()))]


def look_at_face(networks: Networks, image: Image, roi: Roi) -> Part:
    """All 468 vertices of the mesh."""
    mesh, presence = networks.face(roi.cut(image, networks.face.size))
    xy = roi.to_image(mesh.reshape(-1, 3)[:, :2] / networks.face.size)
    present = float(sigmoid(presence.reshape(-1))[0])
    return Part(xy, np.full(len(xy), present), present, roi)


def face_roi(mesh: Float[np.ndarray, "468 2"]) -> Roi:
    return roi_along_eyes(mesh[RIGHT_EYE], mesh[LEFT_EYE], *square(mesh, FACE_MARGIN))


def roi_along_eyes(right: Float[np.ndarray, " 2"], left: Float[np.ndarray, " 2"], center, size: float) -> Roi:
    """The square in which the line from the right eye to the left is level."""
    dx, dy = left - right
    return Roi(float(center[0]), float(center[1]), size, float(np.arctan2(dy, dx)))


def square(points: Float[np.ndarray, "K 2"], margin: float) -> tuple[Float[np.ndarray, " 2"], float]:
    """Centre and side of a square around points, `margin` times as large as they reach."""
    low, high = points.min(0), points.max(0)
    return (low + high) / 2, margin * float((high - low).max())


# ---- hands ---------------------------------------------------------------------------------------------------------
def find_hands(networks: Networks, image: Image, pose: Pose) -> dict[str, Part]:
    """The hands that show, by side: 21 points in HAND21's order."""
    hands = {side: hand for side in HAND21 if (hand := find_hand(networks, image, pose, side)) is not None}
    if len(hands) == 2:
        weak, strong = sorted(hands, key=lambda side: hands[side].conf[0])
        gap = np.linalg.norm(hands[weak].xy - hands[strong].xy, axis=-1).mean()
        if gap < 0.1 * hands[strong].roi.size:  # one hand in both crops
            del hands[weak]
    return hands


def find_hand(networks: Networks, image: Image, pose: Pose, side: str) -> Part | None:
    """The hand of one side, None where it is hidden, too small, or the other one.

    The crop guessed from the body's wrist and knuckles is rough, so the palm detector looks into it for a second guess,
    and each guess follows the landmarks twice. The best look wins: by presence, by how near its wrist is to the body's,
    and by being a hand of the right side.
    """
    wrist, index, pinky, elbow = (joint(pose, f"{side}_{n}") for n in ("wrist", "index1", "pinky1", "elbow"))
    knuckles = (2 * index + pinky) / 3
    palm = float(np.hypot(*(knuckles - wrist)))
    palm = max(palm, 0.25 * float(np.hypot(*(wrist - elbow))))  # a palm turned away looks short
    guess = Roi.upright(wrist, knuckles, knuckles, 2 * palm).raised(0.1, HAND_GUESS_MARGIN)
    best, best_score = None, 0.0
    for start in (guess, *hand_starts(networks, image, guess, wrist, palm)):
        roi = start
        for _ in range(3):
            if not LEAST_PIXELS < roi.size < 4 * guess.size:
                break
            part, right = look_at_hand(networks, image, roi)
            roi = hand_roi(part.xy)
            off = float(np.hypot(*(part.xy[0] - wrist))) / (4 * palm)
            handed = right if side == "right" else 1 - right
            score = part.presence * math.exp(-4 * off**2) * (0.2 + 0.8 * handed)
            if score > best_score:
                best, best_score = part, score
    if best is None or best_score < LEAST_PRESENCE:
        return None
    return replace(best, conf=np.full(len(best.xy), best_score))


def hand_starts(
    networks: Networks, image: Image, around: Roi, wrist: Float[np.ndarray, " 2"], palm: float
) -> list[Roi]:
    """Crops from the palm detector: its points 0 and 2 are the wrist and the middle finger's knuckle."""
    points, scores = networks.palm_detector.detect(image, around, 0.4)
    out = []
    for k in np.argsort(-scores)[:1]:
        box, start, knuckle = points[k, :2], points[k, 2], points[k, 4]
        if np.hypot(*(start - wrist)) < 3 * palm:
            center = box.mean(0)
            side = float(np.ptp(box, 0).max())
            out.append(Roi.upright(start, knuckle, center, side).raised(0.5, 2.6))
    return out


def look_at_hand(networks: Networks, image: Image, roi: Roi) -> tuple[Part, float]:
    """The 21 points, and how much it is a right hand (0..1)."""
    points, presence, handedness, _ = networks.hand(roi.cut(image, networks.hand.size))
    xy = roi.to_image(points.reshape(-1, 3)[:, :2] / networks.hand.size)
    present = float(presence[0])
    return Part(xy, np.full(len(xy), present), present, roi), float(handedness[0])


def hand_roi(xy: Float[np.ndarray, "21 2"]) -> Roi:
    """The crop that MediaPipe's tracker would take next."""
    name = lambda n: xy[HAND21["left"].index(f"left_{n}")]
    wrist = name("hand_root")
    middle = ((name("index1") + name("ring1")) / 2 + name("middle1")) / 2
    palm = xy[[HAND21["left"].index(f"left_{n}") for n in PALM]]
    turned = Roi.upright(wrist, middle, wrist, 1.0)
    u = (palm - wrist) @ turned.axes
    center = wrist + ((u.min(0) + u.max(0)) / 2) @ turned.axes.T
    return Roi(float(center[0]), float(center[1]), float(np.ptp(u, 0).max()), turned.angle).raised(0.1, HAND_MARGIN)


PALM = (
    "hand_root", "thumb1", "thumb2", "thumb3", "index1", "index2", "middle1", "middle2", "ring1", "ring2",
    "pinky1", "pinky2",
)  # fmt: skip
