"""The readers of annotated photos on real files, and inside a loader with workers."""

import itertools
import pickle
import tarfile

import cv2
import numpy as np
import pytest
import torch
from scipy.io import savemat
from torch.utils.data import DataLoader

from body3d.datasets.aic import AIC
from body3d.datasets.coco import COCO, read_detections
from body3d.datasets.flic import FLIC
from body3d.datasets.lsp import LSP
from body3d.datasets.mpii import MPII
from body3d.images import warp_crop
from body3d.metrics.oks import Found, coco_ap
from body3d.metrics.pck import torso_size
from body3d.skeletons import COCO17


def inside(sample, margin: float = 0.0) -> torch.Tensor:
    """Whether each annotated joint lies in the photo, or no further than a share of its size outside."""
    size = torch.tensor([sample.image.shape[1], sample.image.shape[0]])
    xy = sample.kp2d.xy[sample.kp2d.conf > 0]
    return ((xy >= -margin * size - 0.5) & (xy <= (1 + margin) * size)).all(-1)


def unpack(archive, folder, count: int) -> list[str]:
    """The first photos of a tar."""
    with tarfile.open(archive) as tar:
        names = []
        for member in itertools.islice((m for m in tar if m.isfile()), count):
            names.append(member.name.rsplit("/", 1)[-1])
            (folder / names[-1]).write_bytes(tar.extractfile(member).read())
    return names


def test_lspet(shared, tmp_path):
    names = [n for part in "ab" for n in unpack(shared / f"data/lspet/lspet_dev_{part}.tar", tmp_path, 6)]
    people = LSP.packed([shared / f"data/lspet/lspet_dev_{part}.npz" for part in "ab"], tmp_path)
    assert len(people) == 6000 and len(set(people.files)) == 6000
    assert people.labelled.float().mean().item() == pytest.approx(0.879, abs=0.001)
    assert list(people.files[:6]) == names[:6] and list(people.files[3000:3006]) == names[6:]
    for i in (*range(6), *range(3000, 3006)):
        assert inside(people[i], 0.02).all()
    # The photos are scaled until the person is about 150 pixels long.
    sizes = (people.boxes[:, 2:] - people.boxes[:, :2]).amax(-1)
    assert 90 < sizes.median() < 160


def test_lsp(shared):
    people = LSP.original(shared / "data/annotations/lsp/joints.mat")
    assert len(people) == 1000 and people.labelled.all()
    assert (~people.visible).float().mean().item() == pytest.approx(0.07, abs=0.005)
    top, ankle = (people.xy[:, people.joints.index(name), 1] for name in ("head_top", "right_ankle"))
    assert (top < ankle).float().mean() > 0.9  # most athletes stand


def test_flic(shared):
    people = FLIC.h5(shared / "data/annotations/flic/train.h5")
    assert len(people) == 3987 and people.labelled.all()
    left, right = (people.xy[:, people.joints.index(f"{side}_shoulder"), 0] for side in ("left", "right"))
    assert (left > right).all()  # the actors face the camera, so their left is on the right
    assert 50 < torso_size(people.xy, people.joints).median() < 300
    assert people.boxes[0, 2:].sub(people.boxes[0, :2]).tolist() == pytest.approx([440, 440])


def test_mpii(shared):
    h5 = MPII.h5(shared / "data/annotations/mpii/valid.h5")
    names = (shared / "data/annotations/mpii/valid_images.txt").read_text().split()
    assert len(h5) == 2958 and list(h5.files) == names and len(set(h5.ids)) == 2958
    listed = MPII.lists(shared / "data/samples/mpii/test_mpii.json", shared / "data/samples/mpii")
    assert len(listed) == 5
    for i in range(5):  # the first five of the validation people
        assert listed.files[i] == h5.files[i]
        assert torch.equal(listed.labelled[i], h5.labelled[i])
        cut = listed.xy[i] - h5.xy[i]
        assert (cut > -1e-3).all() and (cut < 1).all()  # the h5 has whole pixels
        assert torch.allclose(listed.boxes[i], h5.boxes[i], atol=2e-3)
        assert inside(listed[i]).all()
    # neck and crown are 0.8 of the head rectangle's diagonal apart, PCKh's size is 0.6 of it
    ends = [h5.joints.index(name) for name in ("upper_neck", "head_top")]
    known = h5.labelled[:, ends].all(-1)
    length = (h5.xy[:, ends[0]] - h5.xy[:, ends[1]]).norm(dim=-1)[known]
    assert (h5.head_sizes[known] / length).median().item() == pytest.approx(0.75, abs=0.005)


def test_coco(shared):
    folder = shared / "data/samples/coco"
    people = COCO.keypoints(folder / "test_coco.json", folder)
    assert (len(people.photos), sum(map(len, people.truth.values())), len(people)) == (4, 14, 12)
    assert all(inside(sample).all() for sample in people)
    for sample in people:  # a box spans what is visible of a person; hidden joints may lie outside
        xy, (x0, y0, x1, y1) = sample.kp2d.xy[sample.kp2d.conf > 0], sample.box.xyxy
        within = (xy[:, 0] > x0) & (xy[:, 0] < x1) & (xy[:, 1] > y0) & (xy[:, 1] < y1)
        assert within.float().mean() > 0.8
    found = read_detections(folder / "test_coco_det_AP_H_56.json")
    assert set(found) == set(people.photos) and sum(len(boxes.score) for boxes in found.values()) == 118
    for i, photo in enumerate(people.photo_ids):  # everybody is found, moved by no more than a detector errs
        best = (found[photo].xyxy - people.boxes[i]).abs().amax(-1).min()
        assert best < 0.25 * (people.boxes[i, 2:] - people.boxes[i, :2]).max()

    truth = list(people.truth.values())
    given = [[Found(p.keypoints[:, :2], 1.0) for p in photo if p.keypoints[:, 2].any()] for photo in truth]
    assert coco_ap(truth, given)["AP"] == pytest.approx(1)


def test_coco_wholebody(shared):
    folder = shared / "data/samples/coco"
    people = COCO.wholebody(folder / "test_coco_wholebody.json", folder)
    body = COCO.keypoints(folder / "test_coco.json")
    assert people.ids == body.ids and torch.equal(people.xy[:, :17], body.xy)
    assert people.labelled.sum(1).tolist() == [112, 106, 83, 63, 36, 15, 20, 132, 19, 39, 60, 16]
    position = people.joints.index
    for i in range(len(people)):
        for side in ("left", "right"):
            hand, wrist = (position(f"{side}_{name}") for name in ("hand_root", "wrist"))
            if people.labelled[i, [hand, wrist]].all():  # a hand begins at the wrist of its own side
                reach = (people.boxes[i, 2:] - people.boxes[i, :2]).max()
                assert (people.xy[i, hand] - people.xy[i, wrist]).norm() < 0.06 * reach


def test_aic_converted_by_others(shared):
    folder = shared / "data/annotations/formats/AI Challenger"
    people = AIC.coco_style(folder / "aic.json")
    converted = COCO.keypoints(folder / "aic_coco_format.json")
    assert len(people) == len(converted) == 2
    order = [converted.files.index(name) for name in people.files]
    common = [name for name in people.joints.names if name in COCO17]
    ours, theirs = people.joints.indices(common), COCO17.indices(common)
    assert len(common) == 12
    assert torch.equal(people.xy[:, ours], converted.xy[order][:, theirs])
    assert torch.equal(people.visible[:, ours], converted.visible[order][:, theirs])


def test_format_examples(shared):
    folder = shared / "data/annotations/formats"
    coco = COCO.keypoints(folder / "COCO/coco.json")
    assert len(coco) == 2 and coco[0].kp2d.xy[0].tolist() == [132, 261] and coco[1].kp2d.conf.sum() == 13
    mpii = MPII.lists(folder / "MPII/mpii.json")
    assert mpii[0].kp2d.xy[0].tolist() == [737, 537]
    assert mpii[0].box.xyxy.tolist() == pytest.approx([753 - 194.6961, 334 - 194.6961, 753 + 194.6961, 334 + 194.6961])


class Crops(torch.utils.data.Dataset):
    def __init__(self, people):
        self.people = people

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, i: int):
        sample = self.people[i]
        x0, y0, x1, y1 = sample.box.xyxy.tolist()
        scale = np.array([48 / (x1 - x0), 64 / (y1 - y0)])
        matrix = np.column_stack([np.diag(scale), -scale * (x0, y0) - 0.5])
        return warp_crop(sample.image.numpy(), matrix, (64, 48)), sample.kp2d.xy


def test_workers_decode_and_crop(tmp_path):
    joints = np.ones((14, 3, 6))
    joints[:, 0] = np.arange(14)[:, None] * 4 + 20
    joints[:, 1] = np.arange(14)[:, None] * 5 + 10
    savemat(tmp_path / "joints.mat", {"joints": joints})
    (tmp_path / "images").mkdir()
    for n in range(1, 7):
        cv2.imwrite(str(tmp_path / f"images/im{n:05d}.jpg"), np.full((100, 110, 3), 40 * n, np.uint8))
    people = LSP.extended(tmp_path / "joints.mat", tmp_path / "images")
    loader = DataLoader(Crops(people), batch_size=2, num_workers=2)
    images, xy = zip(*loader, strict=True)
    assert torch.cat(images).shape == (6, 64, 48, 3)
    assert torch.cat(images)[:, 32, 24, 0].tolist() == pytest.approx([40 * n for n in range(1, 7)], abs=2)
    assert torch.equal(torch.cat(xy), people.xy)
    copy = pickle.loads(pickle.dumps(people))  # as workers get it where processes do not fork
    assert len(copy) == 6 and torch.equal(copy[5].image, people[5].image)
