"""Finding everybody in an image with networks made for one near person.

The pose detector and the face detector look at the whole image and at overlapping tiles of several sizes; each hit is
only a seed: a crop in which the landmark network then settles on a person or on nobody. Seeds on people already found
are skipped, and two poses of one person are told by their joints, never by their boxes alone: people overlap.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt8

from body3d.detect.body import CROP_MARGIN, Pose, look, settle, similarity
from body3d.detect.crops import Roi
from body3d.detect.tflite import Networks
from body3d.skeletons import MEDIAPIPE33

__all__ = ["find_people", "person_in_box"]

Image = UInt8[np.ndarray, "H W 3"]

POSE_TILES = (1.3, 1.0, 0.66, 0.44, 0.3)  # tile side relative to the image's longer side
FACE_TILES = (1.0, 0.6, 0.4)
LEAST_SEED = 0.3  # detectors' score
LEAST_SCORE = 0.65  # a pose's score below which it is a ghost
LEAST_SCORE_WEAK = 0.78  # the same where the seed was weak
WEAK_SEED = 0.6
MOST_SEEDS = 50  # a crowd is not worth minutes; people found by a later seed are rare
SURE = 0.8  # a pose's score from which its surroundings are not searched again
GHOST_SCORE = 0.9  # what a pose that lies on another's limbs needs to be believed
LEAST_TILE = 100  # pixels: in smaller tiles a person would be too small for the landmark network
LIMB = 0.03  # half the thickness of a limb relative to the side of the body's crop

NOSE = MEDIAPIPE33.index("nose")
LIMBS = np.array(
    [
        *((a, b) for a, b in MEDIAPIPE33.bones if not MEDIAPIPE33.names[b].endswith("_shoulder")),
        *(MEDIAPIPE33.indices(pair) for pair in (("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"))),
    ]
)


def tiles(width: int, height: int, fractions: tuple[float, ...]) -> Iterator[Roi]:
    """Squares covering the image, overlapping by half or more; a tile larger than the image is centred on it."""
    for fraction in fractions:
        side = fraction * max(width, height)
        if fraction < 1 and side < LEAST_TILE:
            continue

        def centers(length: int, side: float = side) -> Float[np.ndarray, " n"]:
            if side >= length:
                return np.array([(length - 1) / 2])
            return np.linspace((side - 1) / 2, length - (side + 1) / 2, math.ceil((length - side) / (side / 2)) + 1)

        yield from (Roi(float(x), float(y), side) for y in centers(height) for x in centers(width))


def seeds(networks: Networks, image: Image) -> list[tuple[float, Roi]]:
    """(score, crop) where a person may be, best first, without near copies."""
    height, width = image.shape[:2]
    found = []
    for tile in tiles(width, height, POSE_TILES):
        found += pose_seeds(networks, image, tile)
    for tile in tiles(width, height, FACE_TILES):
        for points, score in zip(*networks.face_detector.detect(image, tile, LEAST_SEED), strict=True):
            face, nose = float(points[1, 0] - points[0, 0]), points[4]
            # A face does not say how its body stands: upright, as a bust and as a whole figure. Pose seeds go first.
            for drop, size in ((1.5, 6.0), (2.5, 9.0)):
                found.append((float(score) / 2, Roi(float(nose[0]), float(nose[1]) + drop * face, size * face)))
    return distinct(sorted(found, key=lambda seed: -seed[0]), 0.12, 0.25)


def distinct(seeds: list[tuple[float, Roi]], near: float, zoom: float) -> list[tuple[float, Roi]]:
    """The seeds without those that are alike an earlier one."""
    kept: list[tuple[float, Roi]] = []
    for seed in seeds:
        if not any(alike(seed[1], other[1], near, zoom) for other in kept):
            kept.append(seed)
    return kept


def pose_seeds(networks: Networks, image: Image, tile: Roi, least: float = LEAST_SEED) -> list[tuple[float, Roi]]:
    """The pose detector's hits: its first two keypoints are the middle of the hips and a point on the body's circle."""
    out = []
    for points, score in zip(*networks.pose_detector.detect(image, tile, least), strict=True):
        middle, circle = points[2], points[3]
        radius = float(np.hypot(*(circle - middle)))
        out.append((float(score), Roi.upright(middle, circle, middle, 2 * CROP_MARGIN * radius)))
    return out


def alike(a: Roi, b: Roi, near: float, zoom: float, turn: float = 0.5) -> bool:
    """Centres within `near` of the smaller side, log sizes within `zoom`, angles within `turn` radians."""
    turned = (a.angle - b.angle + math.pi) % (2 * math.pi) - math.pi
    return (
        math.hypot(a.x - b.x, a.y - b.y) < near * min(a.size, b.size)
        and abs(math.log(a.size / b.size)) < zoom
        and abs(turned) < turn
    )


def share_on(points: Float[np.ndarray, "K 2"], pose: Pose) -> float:
    """Share of the points that lie on the limbs of a pose."""
    start, end = pose.xy[LIMBS[:, 0]], pose.xy[LIMBS[:, 1]]
    along = end - start
    t = ((points[:, None] - start) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-6)
    nearest = start + np.clip(t, 0, 1)[..., None] * along
    return float((np.linalg.norm(points[:, None] - nearest, axis=-1).min(1) < LIMB * pose.roi.size).mean())


def redundant(pose: Pose, better: Pose) -> bool:
    """Whether a pose is only another look at the person of a better one."""
    small, large = sorted((pose.area, better.area))
    if similarity(pose, better, small) > 0.4:
        return True
    noses = pose.xy[NOSE], better.xy[NOSE]
    if np.hypot(*(noses[0] - noses[1])) < 0.06 * min(pose.roi.size, better.roi.size):  # two people do not share a nose
        return float(min(pose.conf[NOSE], better.conf[NOSE])) > 0.5
    return share_inside(pose.box, better.box) > 0.85 and similarity(pose, better, large) > 0.3


def ghost(pose: Pose, other: Pose) -> bool:
    """Whether a pose that is not quite sure is made of a part of another person: an arm, a hand, a fold."""
    if pose.score > GHOST_SCORE or pose.area > other.area:
        return False
    return share_on(pose.xy, other) > 0.6 or (
        pose.area < 0.15 * other.area and share_inside(pose.box, other.box) > 0.85
    )


def share_inside(box: Float[np.ndarray, " 4"], other: Float[np.ndarray, " 4"]) -> float:
    """Share of a box's area that lies inside another box."""
    width, height = np.maximum(np.minimum(box, other)[2:] - np.maximum(box, other)[:2], 0)
    return float(width * height) / max(float((box[2] - box[0]) * (box[3] - box[1])), 1e-9)


def find_people(networks: Networks, image: Image, most: int | None = None) -> list[Pose]:
    """Every person, or the `most` that stand out by size and score; best score first."""
    found: list[Pose] = []
    tried = 0
    for strength, roi in seeds(networks, image):
        if any(p.score >= SURE and explained(roi, p) for p in found):
            continue
        if (tried := tried + 1) > MOST_SEEDS:
            break
        least = LEAST_SCORE if strength >= WEAK_SEED else LEAST_SCORE_WEAK
        pose = settle(networks.pose, image, roi, least_score=least)
        if pose is not None and pose.score >= least:
            found.append(pose)
    people: list[Pose] = []
    for pose in sorted(found, key=lambda pose: -pose.score):
        if not any(redundant(pose, other) for other in people):
            people.append(pose)
    people = [pose for pose in people if not any(ghost(pose, other) for other in people if other is not pose)]
    chosen = sorted(people, key=lambda pose: -pose.area * pose.score)[:most]
    return sorted(chosen, key=lambda pose: -pose.score)


def explained(seed: Roi, pose: Pose) -> bool:
    """Whether a seed would only lead to this pose again, or to a ghost whose hips would be on a limb of this person."""
    if alike(seed, pose.roi, 0.15, 0.35, math.pi):
        return True
    return seed.size < 0.6 * pose.roi.size and share_on(np.array([[seed.x, seed.y]]), pose) == 1


def person_in_box(networks: Networks, image: Image, box: Float[np.ndarray, " 4"]) -> Pose:
    """The person that fills a box (x0, y0, x1, y1); with nobody there, the network's best guess at low score."""
    x0, y0, x1, y1 = box
    near, far = (Roi(float(x0 + x1) / 2, float(y0 + y1) / 2, m * float(max(x1 - x0, y1 - y0, 1))) for m in (1.25, 1.8))
    hits = sorted((hit for crop in (near, far) for hit in pose_seeds(networks, image, crop, 0.2)), key=lambda s: -s[0])
    poses = [settle(networks.pose, image, roi) for roi in (near, *(roi for _, roi in distinct(hits, 0.1, 0.2)[:3]))]
    guess = [pose for pose in poses if pose is not None] or [look(networks.pose, image, near)]
    return max(guess, key=lambda pose: pose.score * math.sqrt(overlap(pose.box, box)))


def overlap(a: Float[np.ndarray, " 4"], b: Float[np.ndarray, " 4"]) -> float:
    """Intersection over union."""
    area = lambda box: float((box[2] - box[0]) * (box[3] - box[1]))
    common = share_inside(a, b) * area(a)
    return common / max(area(a) + area(b) - common, 1e-9)
