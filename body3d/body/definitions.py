"""Where the points of other joint sets lie on a body, as linear mixtures of the body's own named points.

A detector's "hip" is not the head of the femur, and Human3.6M's "spine" is not a vertebra of the model. Each such point is a sum
of named points of the body with weights that add to one, so it moves with shape and pose and costs one matrix product.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from body3d.skeletons import SYNTHETIC, JointSet

Mixture = dict[str, float]

# Human3.6M's 17 joints. Its thorax is the base of the neck, its neck_nose lies between chin and throat, and its head_top on the
# crown: 2.3 times as far along neck -> mid-ear as the ears are.
H36M17_ON_BODY: dict[str, Mixture] = {
    "pelvis": {"left_hip": 0.5, "right_hip": 0.5},
    "spine": {"spine1": 0.5, "spine2": 0.5},
    "thorax": {"neck": 1.0},
    "neck_nose": {"head": 0.5, "left_ear": 0.1, "right_ear": 0.1, "nose": 0.3},
    "head_top": {"neck": -0.85, "left_ear": 0.925, "right_ear": 0.925},
}

# What the body has under no name of its own, for sets of any data set: Human3.6M's, and hands at the knuckle of the middle finger.
NAMED_ON_BODY: dict[str, Mixture] = H36M17_ON_BODY | {f"{s}_hand": {f"{s}_middle1": 1.0} for s in ("left", "right")}

# BlazePose was trained on hips that sit 10-14 % of the torso below the joint (towards the knees).
MEDIAPIPE_ON_BODY: dict[str, Mixture] = {
    f"{side}_hip": {f"{side}_hip": 1.10, f"{side}_shoulder": -0.10} for side in ("left", "right")
}


def mixtures(body: JointSet, target: JointSet, special: dict[str, Mixture] | None = None) -> dict[str, Mixture]:
    """For each joint of `target` that can be made from the body's points: its mixture. `special` comes before the names."""
    found: dict[str, Mixture] = {}
    for name in target.names:
        recipes = [(special or {}).get(name, {}), {name: 1.0}]
        recipes += [{part: 1 / len(recipe) for part in recipe} for recipe in SYNTHETIC.get(name, ())]
        for recipe in recipes:
            if recipe and all(part in body for part in recipe):
                found[name] = recipe
                break
    return found


def mixing_matrix(found: dict[str, Mixture], source: tuple[str, ...]) -> Float[Tensor, "K J"]:
    """The matrix that takes the points named `source` to the points of `found`, in its order."""
    position = {name: j for j, name in enumerate(source)}
    matrix = torch.zeros(len(found), len(source))
    for k, recipe in enumerate(found.values()):
        for part, weight in recipe.items():
            matrix[k, position[part]] = weight
    return matrix


def parts_of(found: dict[str, Mixture]) -> tuple[str, ...]:
    """The points of the body that the mixtures use, each once."""
    return tuple(dict.fromkeys(part for recipe in found.values() for part in recipe))
