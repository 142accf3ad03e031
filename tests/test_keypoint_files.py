import json

import pytest
import torch

from body3d.detect.files import coco_results, read_keypoints
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.skeletons import BODY18, BODY25, COCO17, COCO_WHOLEBODY133, HALPE26, MPII16, OPENPOSE137
from body3d.types import Boxes, Detections, Keypoints2D


def triplets(n: int, start: float = 10.0, conf: float = 0.5) -> list[float]:
    return [v for i in range(n) for v in (start + i, 2 * start + i, conf)]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def save(tmp_path):
    return lambda content: write(tmp_path / "k.json", content)


# ---- OpenPose ------------------------------------------------------------------------------------------------------
def test_openpose_people_with_and_without_parts(save):
    whole = {
        "pose_keypoints_2d": triplets(25), "hand_left_keypoints_2d": triplets(21, 100),
        "hand_right_keypoints_2d": triplets(21, 200),
        "face_keypoints_2d": triplets(70, 300, 0.9),
    }  # fmt: skip
    body = {"pose_keypoints_2d": triplets(25, 50), "face_keypoints_2d": [], "hand_left_keypoints_2d": []}
    nobody = {"pose_keypoints_2d": [0.0] * 75}
    d = read_keypoints(save({"version": 1.3, "people": [whole, nobody, body]}))
    k = d.keypoints
    assert k.joints is OPENPOSE137 and k.xy.shape == (2, 137, 2) and d.world is None
    at = lambda person, name: (
        *k.xy[person, k.joints.index(name)].tolist(),
        round(k.conf[person, k.joints.index(name)].item(), 3),
    )
    assert at(0, "right_heel") == (34, 44, 0.5)
    assert at(0, "left_hand_root") == (100, 200, 0.5) and at(0, "right_pinky_tip") == (220, 420, 0.5)
    assert at(0, "right_jaw_0") == (300, 600, 0.9) and at(0, "left_pupil") == (369, 669, 0.9)
    assert at(1, "nose") == (50, 100, 0.5) and at(1, "chin")[2] == 0 and at(1, "left_index1")[2] == 0
    assert d.boxes.xyxy[1].tolist() == [50, 100, 74, 124] and d.boxes.score[1].item() == pytest.approx(0.5)


def test_openpose_old_keys_and_the_18_point_body(save):
    d = read_keypoints(save({"people": [{"pose_keypoints": triplets(18)}]}))
    k = d.keypoints
    assert k.xy[0, k.joints.index("right_eye"), 0] == 24 and k.xy[0, k.joints.index("left_ear"), 0] == 27
    assert k.conf[0, k.joints.index("mid_hip")] == 0 and k.conf[0, k.joints.index("left_heel")] == 0


def test_nobody_is_not_an_error(save):
    assert len(read_keypoints(save({"people": []}))) == 0
    assert len(read_keypoints(save([]))) == 0


# ---- COCO ----------------------------------------------------------------------------------------------------------
def result(image, n=17, **more):
    return {"image_id": image, "category_id": 1, "keypoints": triplets(n, conf=0.8), "score": 0.7, **more}


def test_coco_results_of_one_image_by_name_or_id(save):
    path = save([result(785), result(785, bbox=[10, 20, 30, 40]), result(192)])
    for image in (785, "785", "photos/000000000785.jpg", "COCO_val2014_000000000785.png"):
        assert len(read_keypoints(path, image)) == 2
    d = read_keypoints(path, 785)
    assert d.keypoints.joints is COCO17 and d.keypoints.conf[0, 0] == pytest.approx(0.8)
    assert d.boxes.xyxy[1].tolist() == [9.5, 19.5, 39.5, 59.5]  # edges around pixel centres at integers
    with pytest.raises(InputError, match=r"2 images in it.*192.*785"):
        read_keypoints(path)
    with pytest.raises(InputError, match=r"nothing about the image 'dog.jpg'"):
        read_keypoints(path, "dog.jpg")


def test_coco_whole_body_in_one_list_or_in_parts(save):
    one = read_keypoints(save([result("a", 133)])).keypoints
    assert one.joints is COCO_WHOLEBODY133 and one.xy[0, 132, 0] == 142
    parts = result(
        "a",
        foot_kpts=triplets(6, 100),
        face_kpts=triplets(68, 200),
        lefthand_kpts=triplets(21, 300),
        righthand_kpts=triplets(21, 400),
    )
    k = read_keypoints(save([parts])).keypoints
    x = lambda name: k.xy[0, k.joints.index(name), 0].item()
    assert [x("left_big_toe"), x("right_jaw_0"), x("left_hand_root"), x("right_hand_root")] == [100, 200, 300, 400]


def test_coco_annotations(save):
    labelled = {"image_id": 7, "num_keypoints": 17, "keypoints": triplets(17, conf=2), "bbox": [0, 0, 9, 9]}
    labelled["keypoints"][2] = 1  # the nose is hidden
    labelled["keypoints"][5] = 0  # the left eye is not labelled
    crowd, bare = (
        {**labelled, "iscrowd": 1},
        {"image_id": 7, "num_keypoints": 0, "keypoints": [0] * 51, "bbox": [0, 0, 1, 1]},
    )
    path = save(
        {
            "images": [{"id": 7, "file_name": "x/beach.jpg"}, {"id": 8, "file_name": "empty.jpg"}],
            "annotations": [labelled, crowd, bare],
        }
    )
    d = read_keypoints(path, "beach.png")
    assert len(d) == 1 and d.keypoints.conf[0, :4].tolist() == [0.5, 0, 1, 1]
    assert len(read_keypoints(path, "empty.jpg")) == 0


def test_numbers_of_files_are_ids_only_of_files_so_named(save):
    """beach.jpg has the id 7: another file's number 7 is not it."""
    person = {"keypoints": triplets(17, conf=2), "bbox": [0, 0, 9, 9]}
    images = [{"id": 7, "file_name": "beach.jpg"}, {"id": 8, "file_name": "COCO_val2014_000000000008.jpg"}]
    path = save({"images": images, "annotations": [{"image_id": 7, **person}, {"image_id": 8, **person}]})
    for other in ("holiday/IMG_0007.jpg", "7.jpg"):
        with pytest.raises(InputError, match="nothing about the image"):
            read_keypoints(path, other)
    for image in (7, "7", "beach.png", "000000000008.jpg"):
        assert len(read_keypoints(path, image)) == 1


def test_a_file_of_no_images_has_no_people(save):
    assert len(read_keypoints(save({"annotations": []}))) == 0


@pytest.mark.parametrize("joints", [BODY18, MPII16, HALPE26, JointSet("own", ("nose", "tail"), (-1, -1))])
def test_other_joints_stand_beside_cocos(save, joints):
    torch.manual_seed(0)
    found = Keypoints2D(100 * torch.rand(2, len(joints), 2), torch.rand(2, len(joints)), joints)
    boxes = Boxes(torch.tensor([[0.0, 0, 9, 9]] * 2), torch.ones(2))
    entries = coco_results(Detections(found, boxes), "a.jpg")
    back = read_keypoints(save(entries)).keypoints
    assert back.joints.names == joints.names and (back.joints is joints or joints.name == "own")
    torch.testing.assert_close(back.xy, found.xy, atol=1e-3, rtol=0)
    for entry in entries:
        del entry["points"]
    coco, expected = read_keypoints(save(entries)).keypoints, found.convert(COCO17)
    assert coco.joints is COCO17
    torch.testing.assert_close(coco.xy, expected.xy, atol=1e-3, rtol=0)
    torch.testing.assert_close(coco.conf, expected.conf, atol=1e-3, rtol=0)


# ---- what is wrong is named ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not a JSON file"),
        ("3", "top is 3"),
        ({"a": 1}, "neither OpenPose's"),
        ({"people": {}}, "people is an object"),
        ({"people": [3]}, r"people\[0\] is 3"),
        ({"people": [{"pose_keypoints_2d": triplets(24)}]}, r"people\[0\].pose_.* has 72 numbers; .* 75 .* or 54"),
        ({"people": [{"pose_keypoints_2d": ["a"] * 75}]}, "not a list of finite numbers"),
        ('{"people": [{"pose_keypoints_2d": [NaN, 1, 1]}]}', "not a list of finite numbers"),
        ({"people": [{"pose_keypoints_2d": [0.1, 0.2, 0.9] * 25}]}, "--keypoint_scale 0"),
        ({"people": [{"face_keypoints_2d": triplets(5)}]}, r"face_keypoints_2d has 15 numbers"),
        ([{"image_id": 1, "bbox": [0, 0, 1, 1]}], "without 'keypoints'"),
        ([result(1, 16)], r"\[0\].keypoints has 48 numbers"),
        ([result(1, bbox=[1, 2])], r"\[0\].bbox"),
        ([result(1, score="high")], r"\[0\].score is 'high'"),
        ({"annotations": 3}, "annotations is 3"),
        ([result([1])], r"\[0\].image_id is a list of 1"),
        ({"annotations": [{"image_id": {}}]}, r"annotations\[0\].image_id is an object"),
        ({"images": [{"id": [1]}], "annotations": []}, r"images\[0\].id is a list of 1"),
        ([result(1, score=10**400)], r"\[0\].score"),
        ([{"image_id": 1, "keypoints": [1e39] * 51}], "not a list of finite numbers"),
        ("[" + "1" * 5000 + "]", "not a JSON file"),
        ([result(1, joint_names=["a", "a"], points=triplets(2))], r"\[0\].joint_names are not names"),
        ([result(1, joint_names=["a", "b"], points=triplets(3))], r"\[0\].points has 9 numbers"),
    ],
)  # fmt: skip
def test_errors_name_file_and_key(save, content, says):
    path = save(content)
    with pytest.raises(InputError, match=says) as caught:
        read_keypoints(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_a_picture(tmp_path):
    with pytest.raises(InputError, match=r"gone\.json: cannot read it"):
        read_keypoints(tmp_path / "gone.json")
    with pytest.raises(InputError, match="cannot read it"):
        read_keypoints(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="not a JSON file"):
        read_keypoints(tmp_path / "photo.jpg")


# ---- real files ----------------------------------------------------------------------------------------------------
def test_real_openpose_files(shared):
    d = read_keypoints(shared / "data/openpose_json/spin/im1010_openpose.json")
    k = d.keypoints
    assert len(d) == 1 and k.joints is OPENPOSE137
    y = lambda name: k.xy[0, k.joints.index(name), 1].item()
    assert y("nose") < y("neck") < y("mid_hip")
    for file in sorted((shared / "data/openpose_json/treadmill/json_inputs/27").glob("*.json"))[::30]:
        body = read_keypoints(file).keypoints.convert(BODY25)
        assert (body.conf > 0.3).float().mean() > 0.7


def test_real_coco_files(shared):
    folder = shared / "data/samples/coco"
    d = read_keypoints(folder / "test_coco.json", "000000197388.jpg")
    assert len(d) == 5 and d.keypoints.joints is COCO17
    inside = (d.keypoints.xy[..., 0] >= d.boxes.xyxy[:, None, 0] - 1) & (
        d.keypoints.xy[..., 0] <= d.boxes.xyxy[:, None, 2] + 1
    )
    assert inside[d.keypoints.conf > 0].float().mean() > 0.95
    w = read_keypoints(folder / "test_coco_wholebody.json", "000000000785.jpg").keypoints
    assert w.joints is COCO_WHOLEBODY133 and torch.isfinite(w.xy).all() and (w.conf[:, 23:91] > 0).all()
