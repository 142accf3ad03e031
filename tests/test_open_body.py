"""The shipped body itself: its mesh, shapes, joints, face landmarks, expressions and hands, in plain numpy."""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import KDTree

from body3d.skeletons import FACE68, SMPLX55

FILE = Path(__file__).parents[1] / "body3d" / "body" / "open_body.npz"
JOINT = {name: i for i, name in enumerate(SMPLX55.names)}
FACE = {name: i for i, name in enumerate(FACE68.names)}
LONG_FINGERS = ("index", "middle", "pinky", "ring")


class OpenBody:
    """The file's arrays and the few lines of skinning that the tests need."""

    def __init__(self) -> None:
        with np.load(FILE, allow_pickle=False) as archive:
            self.file = {key: archive[key] for key in archive.files}
        self.verts = self.file["v_template"].astype(float)
        self.faces = self.file["f"]
        self.shapedirs = self.file["shapedirs"] * self.file["shapedirs_scale"].astype(float)
        self.exprdirs = self.file["exprdirs"] * self.file["exprdirs_scale"].astype(float)
        self.units = list(self.file["expression_names"])
        self.joints, self.joint_dirs = self.file["J_template"].astype(float), self.file["J_shapedirs"].astype(float)
        self.weights = np.zeros((len(self.verts), 55))
        rows = np.arange(len(self.verts))[:, None]
        np.add.at(self.weights, (rows, self.file["weights_index"]), self.file["weights_value"].astype(float))
        self.weights /= self.weights.sum(1, keepdims=True)
        self.named = dict(zip(self.file["vertex_names"].tolist(), self.file["vertex_ids"].tolist(), strict=True))

    def posed(self, turns: dict[str, tuple]) -> tuple[np.ndarray, np.ndarray]:
        """Vertices and joints when the named joints turn by rotation vectors (degrees)."""
        from scipy.spatial.transform import Rotation

        world, at = np.tile(np.eye(3), (55, 1, 1)), self.joints.copy()
        for j, (name, parent) in enumerate(zip(SMPLX55.names, SMPLX55.parents, strict=True)):
            own = Rotation.from_rotvec(turns.get(name, (0, 0, 0)), degrees=True).as_matrix()
            world[j] = own if parent < 0 else world[parent] @ own
            if parent >= 0:
                at[j] = at[parent] + world[parent] @ (self.joints[j] - self.joints[parent])
        offset = at - np.einsum("jik,jk->ji", world, self.joints)
        return np.einsum("vj,jik,vk->vi", self.weights, world, self.verts, optimize=True) + self.weights @ offset, at

    def landmarks(self, verts: np.ndarray, row: int = 0) -> np.ndarray:
        """The 68 face points (68, 3) of a mesh, its contour from one row of the table."""
        index = np.concatenate([self.file["dynamic_lmk_faces_idx"][row], self.file["lmk_faces_idx"]])
        share = np.concatenate([self.file["dynamic_lmk_bary_coords"][row], self.file["lmk_bary_coords"]])
        return (verts[self.faces[index]] * share[..., None]).sum(1)

    def with_unit(self, name: str, amount: float = 1.0) -> np.ndarray:
        return self.verts + amount * self.exprdirs[..., self.units.index(name)]


@pytest.fixture(scope="module")
def body() -> OpenBody:
    return OpenBody()


@pytest.fixture(scope="module")
def mirror(body) -> np.ndarray:
    return np.asarray(KDTree(body.verts).query(body.verts * [-1, 1, 1])[1])


def swapped_sides(names: tuple[str, ...]) -> list[int]:
    """For each name the position of the same name on the other side of the body."""
    other = [n.replace("left", "?").replace("right", "left").replace("?", "right") for n in names]
    return [names.index(n) for n in other]


def volume(verts: np.ndarray, faces: np.ndarray) -> float:
    """Litres inside a closed mesh, positive if its faces look outwards (divergence theorem)."""
    a, b, c = (verts[faces[:, k]] for k in range(3))
    return float((np.cross(a, b) * c).sum() / 6 * 1000)


def random_shapes(n: int, s: int) -> np.ndarray:
    """Normal deviates of which none is beyond +-2."""
    rng = np.random.default_rng(0)
    beta = rng.standard_normal((n, s))
    while (beyond := np.abs(beta) > 2).any():
        beta[beyond] = rng.standard_normal(beyond.sum())
    return beta


# ---- the file ------------------------------------------------------------------------------------------------------
def test_file_is_small_and_quick():
    assert FILE.stat().st_size <= 6e6
    start = time.perf_counter()
    body = OpenBody()
    assert time.perf_counter() - start < 1
    assert str(body.file["model"]) == "open"
    assert "CC0" in str(body.file["licence"])
    assert "posedirs" not in body.file  # zeros would fill 80 MB of memory


def test_layout(body):
    assert body.file["parents"].tolist() == list(SMPLX55.parents)
    assert body.shapedirs.shape == (*body.verts.shape, body.joint_dirs.shape[-1])
    assert body.shapedirs.shape[-1] >= 10
    assert body.exprdirs.shape == (*body.verts.shape, 52)
    assert len(set(body.units)) == 52
    assert body.units[:10] == [
        "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft", "mouthFrownRight", "mouthPucker",
        "browInnerUp", "browDownLeft", "browDownRight", "eyeBlinkLeft", "eyeBlinkRight",
    ]  # fmt: skip


# ---- mesh and shapes -----------------------------------------------------------------------------------------------
def test_mesh_is_closed_and_looks_outwards(body):
    f = body.faces
    edges = np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]])
    forward = {(a, b) for a, b in edges.tolist()}
    assert len(forward) == len(edges)
    assert all((b, a) in forward for a, b in forward)
    assert 50 < volume(body.verts, f) < 90


def test_mirror_symmetry(body, mirror):
    flip = np.array([-1.0, 1, 1])
    sides = swapped_sides(SMPLX55.names)
    np.testing.assert_allclose(body.verts[mirror] * flip, body.verts, atol=2e-4)
    np.testing.assert_allclose(body.joints[sides] * flip, body.joints, atol=2e-4)
    np.testing.assert_allclose(body.shapedirs[mirror] * flip[:, None], body.shapedirs, atol=3e-4)
    np.testing.assert_allclose(body.weights[mirror][:, sides], body.weights, atol=0.02)


def test_rest_pose_is_the_layouts(body):
    def direction(a: str, b: str) -> np.ndarray:
        bone = body.joints[JOINT[b]] - body.joints[JOINT[a]]
        return bone / np.linalg.norm(bone)

    for side, x in (("left", 1.0), ("right", -1.0)):
        for a, b in (("shoulder", "elbow"), ("elbow", "wrist")):
            assert direction(f"{side}_{a}", f"{side}_{b}") @ [x, 0, 0] > 0.99
        for a, b in (("hip", "knee"), ("knee", "ankle")):
            assert direction(f"{side}_{a}", f"{side}_{b}") @ [0, -1, 0] > 0.99
        assert direction(f"{side}_ankle", f"{side}_foot")[2] > 0.8  # toes to the front
    assert body.joints[JOINT["head"], 1] > body.joints[JOINT["neck"], 1] > body.joints[JOINT["spine3"], 1] > 0
    assert body.verts[body.named["nose"], 2] > body.joints[JOINT["head"], 2] + 0.05


def test_heights_are_those_of_adults(body):
    beta = random_shapes(1000, body.shapedirs.shape[-1])
    y = body.verts[:, 1] + beta @ body.shapedirs[:, 1].T
    low, middle, high = np.percentile(np.ptp(y, axis=1), [5, 50, 95])
    assert 1.47 < low < 1.54
    assert 1.65 < middle < 1.74
    assert 1.86 < high < 1.93


# ---- joints --------------------------------------------------------------------------------------------------------
def test_pelvis_is_the_origin_of_every_shape(body):
    np.testing.assert_allclose(body.joints[0], 0, atol=1e-6)
    np.testing.assert_allclose(body.joint_dirs[0], 0, atol=1e-6)


def test_joints_follow_the_skin(body):
    """The sparse regressor and the stored linear function of shape are two ways to the same joints."""
    regressor = np.zeros((55, len(body.verts)))
    regressor[body.file["J_regressor_row"], body.file["J_regressor_col"]] = body.file["J_regressor_value"]
    np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-4)
    for beta in random_shapes(5, body.shapedirs.shape[-1]):
        from_skin = regressor @ (body.verts + body.shapedirs @ beta)
        np.testing.assert_allclose(from_skin, body.joints + body.joint_dirs @ beta, atol=2e-3)


@pytest.mark.parametrize("joint", ["left_knee", "left_ankle", "left_elbow", "left_wrist", "left_eye_smplhf", "head"])
def test_joints_lie_inside_for_all_shapes(body, joint):
    """Inside a closed surface the solid angles of its faces sum to 4 pi (van Oosterom and Strackee 1983)."""
    for beta in random_shapes(5, body.shapedirs.shape[-1]):
        at = body.joints[JOINT[joint]] + body.joint_dirs[JOINT[joint]] @ beta
        a, b, c = ((body.verts + body.shapedirs @ beta - at)[body.faces[:, k]] for k in range(3))
        la, lb, lc = (np.linalg.norm(p, axis=1) for p in (a, b, c))
        triple = (np.cross(a, b) * c).sum(1)
        below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        assert round(2 * np.arctan2(triple, below).sum() / (4 * np.pi)) >= 1


def test_eye_joints_are_the_centres_of_the_eyeballs(body):
    for side in ("left", "right"):
        j = JOINT[f"{side}_eye_smplhf"]
        ball = body.verts[body.weights[:, j] > 0.5]
        radius = np.linalg.norm(ball - body.joints[j], axis=1)
        assert radius.max() - radius.min() < 6e-3


# ---- skinning ------------------------------------------------------------------------------------------------------
def test_every_joint_moves_skin(body):
    assert (body.weights.max(0) > 0.3).all()


@pytest.mark.parametrize(
    "turns",
    [
        {"left_shoulder": (0, 0, 75), "right_shoulder": (0, 0, -75)},
        {"left_shoulder": (0, 0, -75), "right_shoulder": (0, 0, 75)},
        {"left_hip": (-90, 0, 0), "right_hip": (-90, 0, 0), "left_knee": (90, 0, 0), "right_knee": (90, 0, 0)},
        {"left_hip": (0, 0, 45), "spine1": (25, 0, 0), "spine2": (20, 0, 0), "left_elbow": (0, -110, 0)},
    ],
    ids=["arms up", "arms down", "sitting", "lunge"],
)
def test_large_angles_keep_the_volume(body, turns):
    verts, _ = body.posed(turns)
    assert volume(verts, body.faces) == pytest.approx(volume(body.verts, body.faces), rel=0.09)


def test_jaw_joint_opens_the_mouth(body):
    def gap(verts: np.ndarray) -> float:
        p = body.landmarks(verts)
        return float(p[FACE["lips_upper"], 1] - p[FACE["lips_lower"], 1])

    assert gap(body.verts) < 4e-3
    assert gap(body.posed({"jaw": (25, 0, 0)})[0]) > 0.02
    assert gap(body.with_unit("jawOpen")) > 0.02


# ---- named vertices ------------------------------------------------------------------------------------------------
def test_named_vertices(body):
    at = {name: body.verts[v] for name, v in body.named.items()}
    height = {name: p[1] for name, p in at.items()}
    head = body.verts[body.weights[:, JOINT["head"]] > 0.9]
    assert at["nose"][2] == pytest.approx(head[:, 2].max(), abs=1e-3)
    for side, x in (("left", 1), ("right", -1)):
        assert np.linalg.norm(at[f"{side}_eye"] - body.joints[JOINT[f"{side}_eye_smplhf"]]) < 0.02
        assert at[f"{side}_ear"][0] * x > 0.06
        assert height[f"{side}_ear"] == pytest.approx(height["nose"], abs=0.05)
        for name in ("big_toe", "small_toe", "heel"):
            assert height[f"{side}_{name}"] == pytest.approx(body.verts[:, 1].min(), abs=0.05)
        assert at[f"{side}_heel"][2] < body.joints[JOINT[f"{side}_ankle"], 2] < at[f"{side}_small_toe"][2]
        assert abs(at[f"{side}_big_toe"][0]) < abs(at[f"{side}_small_toe"][0])
        for finger in (*LONG_FINGERS, "thumb"):
            last = body.joints[JOINT[f"{side}_{finger}3"]]
            before = body.joints[JOINT[f"{side}_{finger}2"]]
            bone = at[f"{side}_{finger}_tip"] - last
            assert 0.01 < np.linalg.norm(bone) < 0.04
            assert bone @ (last - before) > 0


def test_published_vertex_numbers(body):
    assert [body.named[n] for n in ("nose", "left_ear", "right_big_toe", "left_heel", "right_pinky_tip")] == [
        9120, 6, 8463, 8846, 8022,
    ]  # fmt: skip


# ---- face ----------------------------------------------------------------------------------------------------------
def test_landmarks_are_points_of_faces(body):
    for index, share in (("lmk_faces_idx", "lmk_bary_coords"), ("dynamic_lmk_faces_idx", "dynamic_lmk_bary_coords")):
        assert body.file[share].shape == (*body.file[index].shape, 3)
        assert (body.file[share] >= 0).all()
        np.testing.assert_allclose(body.file[share].sum(-1), 1, atol=1e-5)
    assert body.file["lmk_faces_idx"].shape == (51,)
    assert body.file["dynamic_lmk_faces_idx"].shape == (79, 17)


def test_landmarks_are_symmetric_and_in_order(body):
    p = body.landmarks(body.verts)
    np.testing.assert_allclose(p[swapped_sides(FACE68.names)] * [-1, 1, 1], p, atol=5e-4)
    x, y = ({name: p[i, axis] for name, i in FACE.items()} for axis in (0, 1))

    def rising(values: dict[str, float], *names: str) -> bool:
        return all(values[a] < values[b] for a, b in pairwise(names))

    # from the subject's right (negative x) to the middle
    assert rising(x, *(f"right_brow_{k}" for k in range(5)), "nose_bridge_0")
    assert rising(x, "right_eye_outer", "right_eye_upper_outer", "right_eye_upper_inner", "right_eye_inner")
    assert rising(x, "right_eye_outer", "right_eye_lower_outer", "right_eye_lower_inner", "right_eye_inner")
    assert rising(x, "right_nostril_0", "right_nostril_1", "nose_base")
    assert rising(x, "mouth_right", "lips_right", "mouth_upper_right_0", "mouth_upper_right_1", "mouth_upper")
    assert rising(x, "mouth_right", "mouth_lower_right_0", "mouth_lower_right_1", "mouth_lower")
    # from below to above, along the middle and across lids and lips
    assert rising(y, "chin", "mouth_lower", "lips_lower", "lips_upper", "mouth_upper", "nose_base", "nose_bridge_3")
    assert rising(y, "nose_bridge_3", "nose_bridge_2", "nose_bridge_1", "nose_bridge_0", "right_brow_4")
    assert rising(y, "mouth_lower_right_1", "lips_lower_right", "lips_upper_right", "mouth_upper_right_1")
    assert rising(y, "right_eye_lower_outer", "right_eye_outer", "right_eye_upper_outer", "right_brow_1")
    assert rising(y, *(f"right_jaw_{k}" for k in range(7, -1, -1)))


def test_lid_landmarks_touch_the_eyeball(body):
    p = body.landmarks(body.verts)
    for side in ("left", "right"):
        j = JOINT[f"{side}_eye_smplhf"]
        ball = KDTree(body.verts[body.weights[:, j] > 0.5])
        lids = [
            i for name, i in FACE.items() if name.startswith(f"{side}_eye_") and ("upper" in name or "lower" in name)
        ]
        assert len(lids) == 4
        assert ball.query(p[lids])[0].max() < 4e-3


def test_expression_units_do_what_they_say(body):
    neutral = body.landmarks(body.verts)

    def moved(unit: str, name: str) -> np.ndarray:
        return (body.landmarks(body.with_unit(unit)) - neutral)[FACE[name]]

    assert moved("mouthSmileLeft", "mouth_left")[1] > 2e-3
    assert abs(moved("mouthSmileLeft", "mouth_right")[1]) < 1e-3
    assert moved("mouthFrownRight", "mouth_right")[1] < -2e-3
    assert moved("mouthPucker", "mouth_left")[0] < -3e-3
    assert moved("browInnerUp", "left_brow_4")[1] > 2e-3
    assert moved("browDownLeft", "left_brow_3")[1] < -2e-3
    assert moved("jawOpen", "chin")[1] < -0.01
    closed = body.landmarks(body.with_unit("eyeBlinkLeft"))
    opening = neutral[FACE["left_eye_upper_outer"], 1] - neutral[FACE["left_eye_lower_outer"], 1]
    left = closed[FACE["left_eye_upper_outer"], 1] - closed[FACE["left_eye_lower_outer"], 1]
    assert abs(left) < 0.2 * opening
    body_skin = body.weights[:, [JOINT["head"], JOINT["jaw"], JOINT["neck"], 23, 24]].sum(1) < 0.01
    assert np.abs(body.exprdirs[body_skin]).max() < 1e-3


def test_contour_follows_the_view(body):
    """Row k is for a head turned k degrees to its left, row 39 + k to its right, as the camera sees it."""

    def seen(row: int, yaw: float) -> np.ndarray:
        c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
        p = body.landmarks(body.verts, row)
        return np.stack([c * p[:, 0] + s * p[:, 2], p[:, 1]], -1)

    for k in range(1, 40):
        left = body.landmarks(body.verts, k)[:17]
        right = body.landmarks(body.verts, 39 + k)[:17]
        np.testing.assert_allclose(right[::-1] * [-1, 1, 1], left, atol=5e-4)
        jump = seen(k, k)[:17] - seen(k - 1, k)[:17]  # in the picture; depth may jump from ear to cheek
        assert np.linalg.norm(jump, axis=1).max() < 5e-3

    for yaw in (-30, -15, 0, 15, 30):
        points = seen(yaw if yaw >= 0 else 39 - yaw, yaw)
        outline, inner = points[:17], points[17:]
        step = np.diff(outline, axis=0)
        # the outline runs counter-clockwise: what is inside lies to the left of each of its pieces at its own height
        for feature in inner[19:]:  # eyes and mouth
            across = step[:, 0] * (feature - outline[:-1])[:, 1] - step[:, 1] * (feature - outline[:-1])[:, 0]
            level = (outline[:-1, 1] - feature[1]) * (outline[1:, 1] - feature[1]) <= 0
            assert (across[level] > -2e-5).all()

    frontal, turned = body.landmarks(body.verts, 0)[:17], body.landmarks(body.verts, 35)[:17]
    assert turned[13, 2] > frontal[13, 2] + 0.02  # the far side's outline moves to the front of the cheek
    assert turned[3, 2] <= frontal[3, 2] + 5e-3  # the near side's stays at the edge of the jaw


# ---- hands ---------------------------------------------------------------------------------------------------------
def hand_turns(side: str, pose: np.ndarray) -> dict[str, tuple]:
    names = [n for n in SMPLX55.names[25:] if n.startswith(side)]
    return dict(zip(names, np.degrees(pose.reshape(15, 3)), strict=True))


def test_hand_components(body):
    left, right = body.file["hands_componentsl"].astype(float), body.file["hands_componentsr"].astype(float)
    np.testing.assert_allclose(left @ left.T, np.eye(45), atol=1e-5)
    np.testing.assert_allclose(right, left * np.tile([1, -1, -1], 15), atol=1e-6)
    np.testing.assert_allclose(body.file["hands_meanr"], body.file["hands_meanl"] * np.tile([1, -1, -1], 15), atol=1e-6)

    # Fingers point along +x with the palm down: they bend about -z. Twelve components can bend each of them alone,
    # and spread them.
    for i in (0, 1, 2, 3):
        bend = np.zeros((15, 3))
        bend[3 * i : 3 * i + 3] = np.array([[0.9], [1.1], [0.7]]) * [0, 0, -1]
        wanted = bend.ravel() / np.linalg.norm(bend)
        assert np.linalg.norm(left[:12] @ wanted) > 0.95
    spread = np.zeros((15, 3))
    spread[[0, 3, 9, 6], 1] = -1.0, -0.3, 0.5, 1.1
    wanted = spread.ravel() / np.linalg.norm(spread)
    assert np.linalg.norm(left[:12] @ wanted) > 0.9


@pytest.mark.parametrize("side", ["left", "right"])
def test_hands_close_towards_the_palm(body, side):
    mean, first = (body.file[f"hands_{kind}{side[0]}"].astype(float) for kind in ("mean", "components"))
    tips = [body.named[f"{side}_{f}_tip"] for f in LONG_FINGERS]
    thumb = body.named[f"{side}_thumb_tip"]
    relaxed, _ = body.posed(hand_turns(side, mean))
    closed, _ = body.posed(hand_turns(side, mean + 1.5 * first[0]))
    assert (relaxed[tips, 1] < body.verts[tips, 1] - 0.01).all()  # palms face down
    wrist = body.joints[JOINT[f"{side}_wrist"]]
    reach = [np.linalg.norm(v[tips] - wrist, axis=1) for v in (body.verts, relaxed, closed)]
    assert (reach[0] > reach[1]).all()
    assert (reach[1] > reach[2] + 0.02).all()
    assert np.linalg.norm(relaxed[thumb] - relaxed[tips[0]]) < np.linalg.norm(body.verts[thumb] - body.verts[tips[0]])
