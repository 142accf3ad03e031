"""The readers of annotated photos on files that these tests write in the published layouts, without the readers' code."""

import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat

from body3d.datasets.aic import AIC
from body3d.datasets.coco import COCO, read_detections
from body3d.datasets.crowdpose import CrowdPose
from body3d.datasets.flic import FLIC
from body3d.datasets.lsp import LSP
from body3d.datasets.mpii import MPII
from body3d.errors import InputError
from body3d.metrics.oks import Found, coco_ap


def struct_array(rows: list[dict]) -> np.ndarray:
    """MATLAB's 1 x n array of structs."""
    array = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        array[0, i] = tuple(row.values())
    return array


def photo(path: Path, size: tuple[int, int] = (40, 60), bgr: tuple[int, int, int] = (10, 20, 200)) -> None:
    path.parent.mkdir(exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), bgr, np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 100])


def joint(sample, name: str) -> list[float]:
    return sample.kp2d.xy[sample.kp2d.joints.index(name)].tolist()


# ---- LSP -----------------------------------------------------------------------------------------------------------
def test_lsp_calls_blocked_what_its_extension_calls_visible(tmp_path):
    original = np.zeros((3, 14, 1003))
    original[0] = 10 + np.arange(14)[:, None]  # right ankle first, head top last
    original[1] = np.arange(1003)
    original[2, 0, 1001] = 1
    savemat(tmp_path / "joints.mat", {"joints": original})
    train, test = (LSP.original(tmp_path / "joints.mat", split=split) for split in ("train", "test"))
    assert (len(train), len(test), len(LSP.original(tmp_path / "joints.mat", split="all"))) == (1000, 3, 1003)
    assert (train[999].id, test[0].id) == ("im1000.jpg", "im1001.jpg")
    sample = test[1]
    assert sample.image is None
    assert sample.box is not None and sample.box.xyxy.tolist() == [10, 1001, 23, 1001]
    assert joint(sample, "right_ankle") == [10, 1001] and joint(sample, "head_top") == [23, 1001]
    assert joint(sample, "left_shoulder") == [19, 1001]
    assert sample.kp2d.conf.tolist() == [1] * 14
    assert not test.visible[1, 0] and test.visible[1, 1:].all()

    extended = np.ones((14, 3, 2))
    extended[:, 0, 1], extended[:, 1, 1] = np.arange(14), 7
    extended[3, :, 1] = -12, -40, 0
    savemat(tmp_path / "more.mat", {"joints": extended})
    photo(tmp_path / "images" / "im00002.jpg")
    people = LSP.extended(tmp_path / "more.mat", tmp_path / "images")
    sample = people[1]
    assert sample.image is not None and sample.image.shape == (40, 60, 3) and sample.image.dtype == torch.uint8
    assert (sample.image[5, 5].int() - torch.tensor([200, 20, 10])).abs().max() <= 3  # RGB
    assert joint(sample, "left_hip") == [0, 0] and joint(sample, "left_knee") == [4, 7]
    assert sample.kp2d.conf.tolist() == [1, 1, 1, 0] + [1] * 10
    assert people.boxes[1].tolist() == [0, 7, 13, 7]  # without the joint at -12

    np.savez(tmp_path / "part.npz", image=np.array(["im00002.jpg"]), joints=extended[None, ..., 1].astype(np.float32))
    packed = LSP.packed([tmp_path / "part.npz", tmp_path / "part.npz"], tmp_path / "images")
    assert len(packed) == 2 and torch.equal(packed[1].kp2d.xy, sample.kp2d.xy)
    assert torch.equal(packed[0].kp2d.conf, sample.kp2d.conf) and torch.equal(packed[0].image, sample.image)


# ---- FLIC ----------------------------------------------------------------------------------------------------------
def flic_examples(**change) -> np.ndarray:
    rows = []
    for i in range(3):
        coords = np.full((2, 29), np.nan)
        for column in (0, 1, 2, 3, 4, 5, 6, 9, 12, 13, 16):  # those that are annotated
            coords[:, column] = 100 * i + column, 200 + column
        rows.append({
            "poselet_hit_idx": np.arange(4.0), "moviename": "bond", "coords": coords, "filepath": f"bond-{i // 2}.jpg",
            "imgdims": np.array([480.0, 720, 3]), "currframe": 5.0, "torsobox": np.array([1.0, 2, 3, 4 + i]),
            "istrain": i < 2, "istest": i == 2,
        } | change)  # fmt: skip
    rows[1]["coords"][:, 5] = np.nan
    return struct_array(rows)


def test_flic_takes_eleven_of_the_29_columns(tmp_path):
    savemat(tmp_path / "examples.mat", {"examples": flic_examples()})
    train, test = (FLIC.open(tmp_path / "examples.mat", split=split) for split in ("train", "test"))
    assert (len(train), len(test), len(FLIC.open(tmp_path / "examples.mat", split="all"))) == (2, 1, 3)
    assert train.ids == ("bond-0.jpg/0", "bond-0.jpg/1") and test.files == ("bond-1.jpg",)
    sample = train[1]
    expected = {"left_shoulder": 0, "left_wrist": 2, "right_elbow": 4, "left_hip": 6, "right_hip": 9, "left_eye": 12,
                "right_eye": 13, "nose": 16}  # fmt: skip
    for name, column in expected.items():
        assert joint(sample, name) == [100 + column, 200 + column]
    assert sample.kp2d.conf.sum() == 10 and sample.kp2d.conf[sample.kp2d.joints.index("right_wrist")] == 0
    assert sample.kp2d.xy.isfinite().all()
    assert test.torso_boxes is not None and test.torso_boxes.tolist() == [[1, 2, 3, 6]]
    assert test.movies == ("bond",)


def test_flic_h5(tmp_path):
    part = np.arange(22.0).reshape(1, 11, 2)
    with h5py.File(tmp_path / "train.h5", "w") as file:
        file["imgname"] = np.array([b"bond-7.jpg"])
        file["part"], file["visible"] = part, np.ones((1, 11))
        file["center"], file["scale"] = np.array([[300, 240]], np.float32), np.array([2.2])
    people = FLIC.h5(tmp_path / "train.h5")
    sample = people[0]
    assert (
        sample.id == "bond-7.jpg/0" and joint(sample, "right_shoulder") == [6, 7] and joint(sample, "nose") == [20, 21]
    )
    assert sample.box is not None
    assert torch.allclose(sample.box.xyxy, torch.tensor([80.0, 20, 520, 460]))


# ---- MPII ----------------------------------------------------------------------------------------------------------
def mpii_release(path: Path) -> None:
    def point(i: int) -> dict:
        seen = np.zeros((0, 0)) if i in (8, 9) else "0" if i == 0 else "1"  # the head's points have no flag
        return {"x": 100.0 + i, "y": 201.0, "id": float(i), "is_visible": seen}

    def person(ids) -> dict:
        points = struct_array([point(i) for i in ids])
        corners = {"x1": 11.0, "y1": 21.0, "x2": 41.0, "y2": 61.0}
        return corners | {"annopoints": {"point": points}, "scale": 2.0, "objpos": {"x": 301.0, "y": 401.0}}

    empty = np.zeros((0, 0))
    unplaced, pointless = person([3]) | {"scale": empty, "objpos": empty}, person([3]) | {"annopoints": empty}
    headless = person([15]) | dict.fromkeys(("x1", "y1", "x2", "y2"), empty)
    photos = [
        {
            "image": {"name": "a.jpg"},
            "annorect": struct_array([person(range(16)), person([9, 5]), unplaced, pointless]),
        },
        {"image": {"name": "b.jpg"}, "annorect": struct_array([{"scale": 3.0, "objpos": {"x": 1.0, "y": 2.0}}])},
        {"image": {"name": "c.jpg"}, "annorect": empty},
        {"image": {"name": "d.jpg"}, "annorect": struct_array([person([7]), headless])},
    ]
    lonely = np.empty((4, 1), object)
    lonely[:, 0] = [np.array([[2.0]]), np.array([[1.0]]), empty, empty]
    train = np.array([[1.0, 0, 1, 1]])
    release = {"annolist": struct_array(photos), "img_train": train, "version": "12", "single_person": lonely}
    savemat(path, {"RELEASE": release})


def test_mpii_release(tmp_path):
    path = tmp_path / "mpii_human_pose_v1_u12_1.mat"
    mpii_release(path)
    people = MPII.release(path)
    assert people.ids == ("a.jpg/1", "a.jpg/2", "d.jpg/1", "d.jpg/2") and people.files[1:3] == ("a.jpg", "d.jpg")
    assert joint(people[0], "right_ankle") == [99, 200] and joint(people[0], "left_wrist") == [114, 200]
    assert people.visible[0].tolist() == [False] + [True] * 15 and people.labelled[0].all()
    assert [i for i, c in enumerate(people[1].kp2d.conf.tolist()) if c] == [5, 9]
    assert people.boxes[0].tolist() == [100, 200, 500, 600]
    assert people.head_boxes is not None and people.head_boxes[2].tolist() == [10, 20, 40, 60]
    assert people.head_sizes is not None and people.head_sizes[:3].tolist() == pytest.approx([30] * 3)  # 0.6 x 50
    assert people.head_sizes[3].isnan() and people.labelled[3].sum() == 1
    assert MPII.release(path, separate=True).ids == ("a.jpg/2",)
    test = MPII.release(path, split="test")
    assert test.ids == ("b.jpg/1",) and not test.labelled.any() and test.head_boxes is None


def test_mpii_lists_and_h5_are_the_same_people(tmp_path):
    joints = [[100.0 + i, 300.0 + 2 * i] for i in range(16)]
    joints[4] = [-1.0, -1.0]
    seen = [1] * 4 + [0] + [1] * 11
    entry = {"joints_vis": seen, "joints": joints, "image": "a.jpg", "scale": 2.0, "center": [301.0, 401.0]}
    (tmp_path / "valid.json").write_text(json.dumps([entry, entry]))
    heads = np.zeros((2, 2, 2))
    heads[:, :, 1] = [[11, 21], [41, 61]]
    savemat(tmp_path / "gt_valid.mat", {"headboxes_src": heads})
    people = MPII.lists(tmp_path / "valid.json", heads=tmp_path / "gt_valid.mat")
    assert people.ids == ("a.jpg/0", "a.jpg/1")
    sample = people[1]
    assert joint(sample, "head_top") == [108, 317] and joint(sample, "left_knee") == [0, 0]
    assert sample.kp2d.conf.tolist() == seen
    assert sample.box is not None and sample.box.xyxy.tolist() == [100, 200, 500, 600]
    assert people.head_boxes is not None and people.head_boxes[1].tolist() == [10, 20, 40, 60]
    assert people.head_sizes is not None and people.head_sizes[1].item() == pytest.approx(30)

    part = np.array(joints)
    part[4] = 0
    with h5py.File(tmp_path / "valid.h5", "w") as file:
        file["imgname"], file["person"] = np.array([b"a.jpg"]), np.array([3.0])
        file["part"], file["visible"] = part[None], np.array([[0.0, *seen[1:]]])
        file["center"], file["scale"] = np.array([[301.0, 401 + 15 * 2]]), np.array([2 * 1.25])
        file["normalize"] = np.array([30.0])
    other = MPII.h5(tmp_path / "valid.h5")
    assert other.ids == ("a.jpg/4",)
    assert torch.equal(other.xy[0], people.xy[0]) and torch.equal(other.labelled[0], people.labelled[0])
    assert torch.allclose(other.boxes[0], sample.box.xyxy)
    assert other.head_sizes is not None and other.head_sizes.tolist() == [30]
    assert not other.visible[0, 0] and other.visible[0, 1]


# ---- COCO, AI Challenger, CrowdPose --------------------------------------------------------------------------------
def coco_file(path: Path, n: int = 17, **parts: list[float]) -> Path:
    """Three photos, the last without people; a person, one without keypoints and a crowd."""
    labelled = [value for i in range(n) for value in (10 + i, 20 + i, i % 3)]
    common = {"category_id": 1, "bbox": [1.0, 2.0, 30.0, 40.0], "area": 700.25} | parts
    people = [
        common | {"id": 7, "image_id": 5, "iscrowd": 0, "keypoints": labelled, "num_keypoints": 2 * n // 3},
        common | {"id": 8, "image_id": 5, "iscrowd": 0, "keypoints": [0] * 3 * n, "num_keypoints": 0},
        common | {"id": 9, "image_id": 6, "iscrowd": 1, "keypoints": labelled, "num_keypoints": 2 * n // 3},
    ]
    photos = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 50, "width": 60} for i in (5, 6, 4)]
    path.write_text(json.dumps({"images": photos, "annotations": people, "categories": []}))
    return path


def test_coco_keypoints(tmp_path):
    photo(tmp_path / "val2017" / "000000000005.jpg")
    people = COCO.keypoints(coco_file(tmp_path / "person_keypoints_val2017.json"), tmp_path / "val2017")
    assert len(people) == 1 and people.photo_ids == (5,)
    sample = people[0]
    assert sample.id == "000000000005.jpg/7" and sample.image is not None and sample.image.shape == (40, 60, 3)
    assert joint(sample, "left_eye") == [11, 21] and joint(sample, "nose") == [0, 0]
    assert sample.kp2d.conf.tolist() == [min(i % 3, 1) for i in range(17)]
    assert people.visible[0].tolist() == [i % 3 == 2 for i in range(17)]
    assert sample.box is not None and sample.box.xyxy.tolist() == [0.5, 1.5, 30.5, 41.5]
    assert {photo: len(found) for photo, found in people.truth.items()} == {5: 2, 6: 1, 4: 0}
    person, unlabelled = people.truth[5]
    assert person.area == 700.25 and person.bbox == (1, 2, 30, 40) and not person.iscrowd
    assert person.keypoints[2].tolist() == [12, 22, 2] and not unlabelled.keypoints.any()
    assert people.truth[6][0].iscrowd


def test_the_truth_found_exactly_is_all_of_it(tmp_path):
    people = COCO.keypoints(coco_file(tmp_path / "person_keypoints_val2017.json"))
    truth = list(people.truth.values())
    found = [[Found(person.keypoints[:, :2], 1.0) for person in photo if person.keypoints.any()] for photo in truth]
    result = coco_ap(truth, found)
    assert result["AP"] == pytest.approx(1) and result["AR"] == 1


def test_coco_wholebody_puts_the_parts_in_order(tmp_path):
    sizes = {"foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
    parts = {
        key: [float(v) for i in range(n) for v in (100 * k + i, 7, 1)] for k, (key, n) in enumerate(sizes.items(), 1)
    }
    people = COCO.wholebody(coco_file(tmp_path / "coco_wholebody_val_v1.0.json", **parts))
    sample = people[0]
    assert joint(sample, "left_big_toe") == [100, 7] and joint(sample, "right_heel") == [105, 7]
    assert joint(sample, "right_jaw_0") == [200, 7] and joint(sample, "left_hand_root") == [300, 7]
    assert joint(sample, "right_pinky_tip") == [420, 7] and joint(sample, "left_eye") == [11, 21]
    assert (
        not people.visible[0, 17:23].any() and people.visible[0, 23:].all()
    )  # 1 is hidden, but not in faces and hands


def test_detections_come_best_first_and_are_people(tmp_path):
    box = {"bbox": [10.0, 20, 30, 40], "image_id": 5, "category_id": 1}
    rows = [box | {"score": 0.2}, box | {"score": 0.9, "bbox": [0.0, 0, 4, 2]}, box | {"score": 0.99, "category_id": 3}]
    rows += [box | {"score": 0.1, "image_id": 6}]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    found = read_detections(tmp_path / "found.json", min_score=0.15)
    assert list(found) == [5]
    assert found[5].xyxy.tolist() == [[-0.5, -0.5, 3.5, 1.5], [9.5, 19.5, 39.5, 59.5]]
    assert found[5].score.tolist() == pytest.approx([0.9, 0.2])


def test_aic_counts_visibility_the_other_way_round(tmp_path):
    points = [value for i in range(14) for value in (10 + i, 20 + i, 1 + i % 3)]
    content = [
        {
            "image_id": "c0ffee",
            "url": "http://example.org/1",
            "keypoint_annotations": {"human1": [0, 0, 3] * 14, "human2": points},
            "human_annotations": {"human2": [1, 2, 31, 42], "human1": [0, 0, 5, 5]},
        },
        {"image_id": "bad", "url": "", "keypoint_annotations": {}, "human_annotations": {}},
    ]
    (tmp_path / "original.json").write_text(json.dumps(content))
    people = AIC.original(tmp_path / "original.json")
    assert people.ids == ("c0ffee.jpg/human2",)
    assert people.truth["c0ffee"][1].area == 30 * 40 and people.truth["bad"] == []
    assert people.visible[0].tolist() == [i % 3 == 0 for i in range(14)]
    assert people.labelled[0].tolist() == [i % 3 != 2 for i in range(14)]
    assert joint(people[0], "left_shoulder") == [13, 23] and joint(people[0], "upper_neck") == [23, 33]

    converted = [value for i in range(14) for value in (10 + i, 20 + i, 2 - i % 3)]
    same = {"images": [{"id": 3, "file_name": "c0ffee.jpg"}], "annotations": [
        {"id": 1, "image_id": 3, "keypoints": converted, "bbox": [1, 2, 30, 40], "area": 1200, "iscrowd": 0}
    ]}  # fmt: skip
    (tmp_path / "aic_val.json").write_text(json.dumps(same))
    other = AIC.coco_style(tmp_path / "aic_val.json")
    assert torch.equal(other.xy, people.xy) and torch.equal(other.visible, people.visible)
    assert torch.equal(other.labelled, people.labelled) and torch.equal(other.boxes, people.boxes)


def test_crowdpose_has_no_areas(tmp_path):
    path = coco_file(tmp_path / "crowdpose_test.json", 14)
    content = json.loads(path.read_text())
    for person in content["annotations"]:
        del person["area"]
    path.write_text(json.dumps(content))
    people = CrowdPose.open(path)
    assert len(people) == 1 and people.truth[5][0].area == pytest.approx(0.53 * 30 * 40)
    assert joint(people[0], "right_shoulder") == [11, 21]


# ---- bad input -----------------------------------------------------------------------------------------------------
def message(run) -> str:
    with pytest.raises(InputError) as caught:
        run()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "read", [LSP.original, LSP.extended, FLIC.open, FLIC.h5, MPII.release, MPII.lists, MPII.h5, COCO.keypoints,
             COCO.wholebody, AIC.original, AIC.coco_style, CrowdPose.open, read_detections, lambda path: LSP.packed([path])]
)  # fmt: skip
def test_a_missing_or_broken_file_is_named_with_its_source(tmp_path, read):
    missing, broken = tmp_path / "nothing", tmp_path / "broken"
    broken.write_bytes(b"MATLAB 5.0 MAT-file {")
    for path in (missing, broken):
        text = message(lambda path=path: read(path))
        assert str(path) in text and any(place in text for place in (".html", ".org", ".de", "github.com", ".com/"))


def test_a_truncated_archive(tmp_path):
    savemat(tmp_path / "joints.mat", {"joints": np.random.default_rng(0).random((3, 14, 50))}, do_compression=True)
    whole = (tmp_path / "joints.mat").read_bytes()
    (tmp_path / "joints.mat").write_bytes(whole[: len(whole) // 2])
    assert "joints.mat cannot be read" in message(lambda: LSP.original(tmp_path / "joints.mat"))
    (tmp_path / "half.json").write_text('[{"bbox": [1, 2')
    assert "half.json is not JSON" in message(lambda: read_detections(tmp_path / "half.json"))


def test_lsp_errors(tmp_path):
    def write(array):
        savemat(tmp_path / "joints.mat", {"joints": array})
        return tmp_path / "joints.mat"

    joints = np.zeros((3, 14, 20))
    assert "(14, 3, N)" in message(lambda: LSP.original(write(np.zeros((14, 3, 20)))))
    assert "20 people" in message(lambda: LSP.original(write(joints), split="test"))
    joints[0, 3, 4] = np.nan
    assert "joints has 1 entries that are NaN" in message(lambda: LSP.original(write(joints)))
    joints[0, 3, 4], joints[2, 0, 0] = 0, 5
    assert "flags 0 or 1" in message(lambda: LSP.original(write(joints)))
    savemat(tmp_path / "other.mat", {"x": joints})
    assert "no variable 'joints'" in message(lambda: LSP.original(tmp_path / "other.mat"))
    people = LSP.original(write(np.zeros((3, 14, 20))))
    with pytest.raises(IndexError):
        people[20]
    assert "no such folder of photos" in message(lambda: LSP.original(tmp_path / "joints.mat", tmp_path / "images"))
    (tmp_path / "images").mkdir()
    people = LSP.original(tmp_path / "joints.mat", tmp_path / "images")
    assert "im0003.jpg" in message(lambda: people[2])


def test_flic_errors(tmp_path):
    path = tmp_path / "examples.mat"
    savemat(path, {"examples": flic_examples(istest=False)})
    assert "no one of the split 'test'" in message(lambda: FLIC.open(path, split="test"))
    savemat(path, {"examples": flic_examples(coords=np.zeros((2, 20)))})
    assert "where (2, 29) was expected" in message(lambda: FLIC.open(path))
    with h5py.File(tmp_path / "valid.h5", "w") as file:
        file["imgname"], file["part"] = np.array([b"a", b"b"]), np.zeros((3, 11, 2))
    assert "no visible, center, scale" in message(lambda: FLIC.h5(tmp_path / "valid.h5"))
    with h5py.File(tmp_path / "valid.h5", "a") as file:
        file["visible"], file["center"], file["scale"] = np.ones((2, 11)), np.zeros((2, 2)), np.ones(2)
    assert "part has 3 rows, imgname 2" in message(lambda: FLIC.h5(tmp_path / "valid.h5"))


def test_mpii_errors(tmp_path):
    path = tmp_path / "valid.json"
    entry = {"joints_vis": [1] * 16, "joints": [[1.0, 2.0]] * 16, "image": "a", "scale": 1.0, "center": [1.0, 2.0]}
    for change, expected in (
        ({"joints": [[1.0, 2.0]] * 15}, "joints of list[1] has the shape (15, 2), not (16, 2)"),
        ({"joints": [[1.0, float("nan")]] * 16}, "NaN"),
        ({"image": 3}, "list[1] has no 'image'"),
        ({"scale": "big"}, "scale"),
    ):
        path.write_text(json.dumps([entry, entry | change]))
        assert expected in message(lambda: MPII.lists(path))
    del entry["center"]
    path.write_text(json.dumps([entry]))
    assert "list[0] has no 'center'" in message(lambda: MPII.lists(path))
    savemat(tmp_path / "release.mat", {"RELEASE": {"annolist": 1.0, "img_train": 1.0}})
    assert "no 'single_person'" in message(lambda: MPII.release(tmp_path / "release.mat"))


def test_coco_errors(tmp_path):
    path = coco_file(tmp_path / "instances_val2017.json")
    whole = json.loads(path.read_text())

    def with_person(**change) -> str:
        people = [whole["annotations"][0], whole["annotations"][1] | change]
        path.write_text(json.dumps(whole | {"annotations": people}))
        return message(lambda: COCO.keypoints(path))

    assert "keypoints of annotations[1] has the shape (42,), not (51,)" in with_person(keypoints=[0] * 42)
    assert "bbox of annotations" in with_person(bbox=[1, 2, 3])
    assert "99" in with_person(image_id=99)
    assert "NaN" in with_person(area=float("nan"))
    path.write_text(json.dumps({"images": []}))
    assert "no list 'annotations'" in message(lambda: COCO.keypoints(path))
    del whole["annotations"][0]["keypoints"]
    path.write_text(json.dumps(whole))
    assert "annotations[0] has no 'keypoints'" in message(lambda: COCO.keypoints(path))
    assert "has no 'foot_kpts'" in message(lambda: COCO.wholebody(coco_file(path)))
    aic = [
        {
            "image_id": "a",
            "keypoint_annotations": {"human1": [1, 2, 0] * 14},
            "human_annotations": {"human1": [0, 0, 1, 1]},
        }
    ]
    path.write_text(json.dumps(aic))
    assert "AIC.coco_style" in message(lambda: AIC.original(path))
    del aic[0]["human_annotations"]["human1"]
    path.write_text(json.dumps(aic))
    assert "photo 0 of the list has no 'human1'" in message(lambda: AIC.original(path))
