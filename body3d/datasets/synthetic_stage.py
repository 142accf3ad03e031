"""Where synthetic scenes happen: a camera, the floor before it, and places on it where people stand clear of each other."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from body3d.camera import Camera

__all__ = ["DIRECTIONS", "GAP", "NEAREST", "Stage", "about_y", "reach_on_floor", "stand", "viewpoint"]

PELVIS_HEIGHT, STATURE = 0.9, 1.7  # m, roughly: to aim a camera
NEAREST = 0.4  # m before the camera's plane that everybody stays away
GAP = 0.05  # m between people
DIRECTIONS = np.stack(
    [np.cos(a := np.arange(24) * np.pi / 12), np.sin(a)], -1
)  # of which outlines on the floor are known
TRIES = 48  # places looked at for each further person


@dataclass(frozen=True)
class Stage:
    """Where the floor lies: points X with up.X = -height, in camera axes (m), and horizontal axes."""

    up: Float[np.ndarray, "3"]
    height: float  # of the camera above the floor
    right: Float[np.ndarray, "3"]
    ahead: Float[np.ndarray, "3"]

    def floor(self, ground: Float[np.ndarray, "*M 2"]) -> Float[np.ndarray, "*M 3"]:
        """Points of the floor from their coordinates along `right` and `ahead`."""
        return ground @ np.stack([self.right, self.ahead]) - self.height * self.up


# ---- the camera ----------------------------------------------------------------------------------------------------
def viewpoint(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Camera, Stage, Float[np.ndarray, "2"]]:
    """A camera, the floor in its axes, and the place on the floor that it looks at."""
    height, width = size
    focal = max(size) / 2 / np.tan(np.radians(rng.uniform(30, 75)) / 2)
    camera = Camera.pinhole(float(focal), size)
    share = np.exp(rng.uniform(np.log(0.3), np.log(1.3)))  # of the image's height that somebody upright fills
    distance = max(focal * STATURE / (share * height), 1.6)
    while True:
        pitch = np.radians(rng.normal(12, 14))
        roll = np.radians(rng.normal(0, 2.5))
        up = np.array([np.sin(roll) * np.cos(pitch), -np.cos(roll) * np.cos(pitch), -np.sin(pitch)])
        off = np.clip(rng.normal(0, 0.12, 2), -0.3, 0.3) * (width, height) / focal
        middle = distance * np.array([*off, 1.0])
        above = PELVIS_HEIGHT - up @ middle  # the camera's height
        if 0.25 < above < 12 and abs(pitch) < np.radians(60):
            break
    ahead = np.array([0, 0, 1.0]) - up[2] * up
    ahead /= np.linalg.norm(ahead)
    stage = Stage(up, float(above), np.cross(ahead, up), ahead)
    return camera, stage, np.array([middle @ stage.right, middle @ stage.ahead])


def about_y(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


# ---- places on the floor -------------------------------------------------------------------------------------------
def stand(
    rng: np.random.Generator,
    verts: Float[np.ndarray, "N V 3"],
    skins: Float[np.ndarray, "N S 3"],
    stage: Stage,
    target: Float[np.ndarray, "2"],
    K: np.ndarray,
) -> Float[np.ndarray, "N 3"]:
    """Where the roots are if everybody stands on the floor and clear of the others; `verts` and `skins` (some
    of them) are relative to the roots.

    An outline on the floor is known by how far it reaches in each of `DIRECTIONS`: two are apart if in one of these directions
    there is a gap between them.
    """
    reach = reach_on_floor(skins, stage)
    opposite = np.roll(reach, len(DIRECTIONS) // 2, axis=1)
    root_height = -(verts @ stage.up.astype(verts.dtype)).min(1)
    nearest = (verts[..., 2]).min(1)  # depth of the nearest vertex relative to the root

    def root(person: int, ground: np.ndarray) -> np.ndarray:
        return stage.floor(ground) + root_height[person] * stage.up

    # The first one stands where the camera looks, or as far behind as the camera's plane asks for.
    lacks = NEAREST - (root(0, target)[2] + nearest[0])
    places = [target + max(lacks, 0) / stage.ahead[2] * np.array([0, 1.0])]
    roomy = rng.uniform(0.0, 1.2)
    width, height = 2 * K[0, 2] + 1, 2 * K[1, 2] + 1
    for person in range(1, len(verts)):
        angle = rng.uniform(-np.pi, np.pi, TRIES)
        radius = roomy + np.linspace(0.3, 4.0, TRIES)
        from_whom = np.array(places)[rng.integers(len(places), size=TRIES)]
        tried = from_whom + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        gaps = [
            ((tried - there) @ DIRECTIONS.T - reach[other] - opposite[person]).max(-1)
            for other, there in enumerate(places)
        ]
        there = root(person, tried)
        good = (np.min(gaps, 0) > GAP) & (there[:, 2] + nearest[person] > NEAREST)
        xy = there[:, :2] / np.maximum(there[:, 2:], 0.1) * K[0, 0] + K[:2, 2]
        good &= (xy > 0.02 * width).all(-1) & (xy < 0.98 * np.array([width, height])).all(-1)
        if good.any():
            places.append(tried[good.argmax()])
            continue
        # Behind everybody there is always room: DIRECTIONS has "ahead" and its opposite.
        ahead = int(DIRECTIONS[:, 1].argmax())
        behind = max(there[1] + reach[other, ahead] for other, there in enumerate(places)) + opposite[person, ahead]
        lacks = NEAREST - (root(person, np.array([places[0][0], behind]))[2] + nearest[person])
        places.append(np.array([places[0][0] + rng.normal(0, 0.5), behind + 2 * GAP + max(lacks, 0) / stage.ahead[2]]))
    return np.stack([root(person, place) for person, place in enumerate(places)])


def reach_on_floor(skins: Float[np.ndarray, "N V 3"], stage: Stage) -> Float[np.ndarray, "N D"]:
    """How far everybody reaches in each of `DIRECTIONS` on the floor."""
    axes = (DIRECTIONS @ np.stack([stage.right, stage.ahead])).astype(skins.dtype)
    return (axes @ skins.swapaxes(1, 2)).max(-1)
