"""Mean pose and pose components of the open body's hands, from anatomy rather than from recordings.

Each hand has 15 joints in the layout's order (index, middle, pinky, ring, thumb; three each), so a hand's pose is 45
numbers. A normal distribution over them is written down as a sum of movements that hands make, each with an axis taken
from the rest hand and a spread in radians; the components are its principal axes, orthonormal, widest first.
"""

from __future__ import annotations

import numpy as np

FINGERS = ("index", "middle", "pinky", "ring", "thumb")
LONG = ("index", "middle", "ring", "pinky")


def hand_articulation(verts: np.ndarray, weights: np.ndarray, joints: np.ndarray, index: dict[str, int]) -> dict:
    """hands_meanl/r (45,) and hands_componentsl/r (45, 45, a row each), radians.

    verts (V, 3) and joints (55, 3) of the rest body, weights (V, 55), index: joint name -> number.
    """
    mean, movements = _left_hand(verts, weights, joints, index)
    covariance = 0.02**2 * np.eye(45) + sum(spread**2 * np.outer(m, m) for m, spread in movements)
    components = np.linalg.eigh(covariance)[1].T[::-1]
    components *= np.where(components @ movements[0][0] < 0, -1, 1)[:, None]  # positive closes the hand
    mirror = np.tile([1.0, -1.0, -1.0], 15)  # a rotation vector seen in the mirror x -> -x
    return {
        "hands_meanl": mean.astype(np.float32),
        "hands_meanr": (mean * mirror).astype(np.float32),
        "hands_componentsl": components.astype(np.float32),
        "hands_componentsr": (components * mirror).astype(np.float32),
    }


def _left_hand(verts, weights, joints, index) -> tuple[np.ndarray, list[tuple[np.ndarray, float]]]:
    """The relaxed pose (45,) of the left hand and its movements: directions (45,) with their spreads, radians."""
    at = {name[5:]: joints[j] for name, j in index.items() if name.startswith("left_")}
    slot = {f"{f}{k}": 3 * (3 * i + k - 1) for i, f in enumerate(FINGERS) for k in (1, 2, 3)}

    def pose(turns: dict[str, np.ndarray]) -> np.ndarray:
        vector = np.zeros(45)
        for joint, turn in turns.items():
            vector[slot[joint] : slot[joint] + 3] += turn
        return vector

    across = _unit(at["pinky1"] - at["index1"])
    palm = _unit(np.cross(at["middle1"] - at["wrist"], across))  # out of the palm
    palm *= -np.sign(palm[1])  # palms face down in the rest pose
    bend = {f: _unit(np.cross(at[f"{f}3"] - at[f"{f}1"], palm)) for f in LONG}  # positive: towards the palm
    sideways = {f: _unit(np.cross(at[f"{f}3"] - at[f"{f}1"], bend[f])) for f in LONG}
    sideways = {
        f: a * np.sign(np.cross(a, at[f"{f}3"] - at[f"{f}1"]) @ -across) for f, a in sideways.items()
    }  # to the thumb

    # The thumb's last bone is broader than thick, and its pad is the thick direction's end nearer to the palm's middle.
    thumb = _unit(at["thumb3"] - at["thumb2"])
    tip = verts[weights[:, index["left_thumb3"]] > 0.8]
    spread = (tip - tip.mean(0)) - np.outer((tip - tip.mean(0)) @ thumb, thumb)
    pad = np.linalg.svd(spread, full_matrices=False)[2][1]  # of the two directions across, the thinner
    pad *= np.sign(pad @ (at["middle1"] + 0.03 * palm - tip.mean(0)))
    thumb_bend = _unit(np.cross(thumb, pad))
    root = _unit(at["thumb2"] - at["thumb1"])
    lift = _unit(np.cross(root, palm))  # away from the palm's plane, to its front
    roll = root * np.sign(np.cross(pad, -palm) @ root)  # turns the pad to face the fingers
    sweep = _unit(np.cross(root, across))  # towards the little finger
    oppose = 0.6 * lift + 0.5 * sweep + 0.6 * roll

    def curl(f: str) -> dict[str, np.ndarray]:
        return {f"{f}1": 0.9 * bend[f], f"{f}2": 1.1 * bend[f], f"{f}3": 0.7 * bend[f]}

    def hook(f: str) -> dict[str, np.ndarray]:  # knuckles back, the other joints bent
        return {f"{f}1": -0.9 * bend[f], f"{f}2": 0.7 * bend[f], f"{f}3": 0.4 * bend[f]}

    fan = {"index": 1.0, "middle": 0.3, "ring": -0.5, "pinky": -1.1}
    thumb_flexion = {"thumb2": 0.7 * thumb_bend, "thumb3": thumb_bend}
    grasp = {j: a for f in LONG for j, a in curl(f).items()} | {"thumb2": 0.2 * thumb_bend, "thumb3": 0.3 * thumb_bend}
    movements = [(pose(grasp), 0.55)]
    movements += [(pose(curl(f)), s) for f, s in zip(LONG, (0.40, 0.28, 0.28, 0.33), strict=True)]
    movements += [(pose(thumb_flexion), 0.40), (pose({"thumb1": oppose}), 0.40), (pose({"thumb1": sweep}), 0.25)]
    movements += [(pose({f"{f}1": fan[f] * sideways[f] for f in LONG}), 0.20)]
    movements += [(pose({j: a for f in LONG for j, a in hook(f).items()}), 0.25)]
    movements += [(pose(hook(f)), 0.12) for f in LONG]
    movements += [(pose({f"{f}1": sideways[f]}), 0.06) for f in LONG]

    relaxed = {"thumb1": 0.25 * oppose, "thumb2": np.radians(8) * thumb_bend, "thumb3": np.radians(14) * thumb_bend}
    for f, much in zip(LONG, (0.8, 1.0, 1.1, 1.2), strict=True):
        relaxed |= {f"{f}{k}": np.radians(much * angle) * bend[f] for k, angle in ((1, 18), (2, 26), (3, 14))}
    return pose(relaxed), movements


def _unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)
