"""Training of 2D networks, on photos that these tests draw: people whose joints are dots of different colours."""

import colorsys
import math
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from body3d.augment import Augmentation, Colours, Cutout, HalfBody
from body3d.cli import main
from body3d.codecs import RLE, Heatmap, SamplingArgmax, SimCC
from body3d.commands.train import Train, train
from body3d.commands.train_lifter import TrainLifter, train_lifter
from body3d.crop import apply, crop_matrix, invert
from body3d.datasets.coco import COCO
from body3d.datasets.lsp import LSP
from body3d.datasets.mpii import MPII
from body3d.datasets.people import People
from body3d.errors import InputError
from body3d.images import read_image
from body3d.layers import BasicBlock
from body3d.learn.begin import begin_from
from body3d.learn.configs import read_config
from body3d.learn.crops import Crops, PhotoSet, compose, lspet, mpii
from body3d.learn.pose2d import PoseRun, PoseTask, figures, layer_scales
from body3d.metrics.oks import Person
from body3d.nets.cpn import cpn_r50
from body3d.nets.hourglass import StackedHourglass
from body3d.nets.pct import PoseTokenizer, pct_on_trunk
from body3d.nets.resnet import PoseResNet, ResNet
from body3d.nets.rmpe import SymmetricNet, SymmetricPoseNet
from body3d.nets.small import SmallTrunk, small
from body3d.nets.vitpose import ViT, ViTPoseTrunk
from body3d.posenet import PLAIN, PoseNet, on_trunk
from body3d.skeletons import COCO17, LSP14, MPII16
from body3d.train import Cosine, Plan, Steps, read_checkpoint
from body3d.train import train as train_task
from body3d.types import Keypoints2D

CONFIGS = Path(__file__).parents[1] / "configs"
SIZE = (64, 64)
STILL = Augmentation(flip=0.0, scale=0.0, rotation=0.0, half_body=None)
TINY = """
from body3d.augment import Augmentation
from body3d.codecs import SimCC
from body3d.learn.crops import lspet
from body3d.learn.pose2d import PoseRun
from body3d.nets.small import SmallTrunk
from body3d.posenet import on_trunk
from body3d.train import Plan

trunk = lambda: SmallTrunk((8, 8, 8, 8), (1, 1, 1, 1), 8)
run = PoseRun(
    data=lspet(), net=lambda joints: on_trunk(trunk(), SimCC(), joints, (64, 64)), plan=Plan(epochs=3, lr=1e-3),
    batch=4, workers=0,
)
"""


def colour(joint: int) -> tuple[int, int, int]:
    r, g, b = (round(255 * v) for v in colorsys.hsv_to_rgb(joint / len(LSP14), 1, 1))
    return r, g, b


def draw(folder: Path, count: int, side: int, dot: int, seed: int = 0) -> np.ndarray:
    """Photos and joints (count, 14, 3) in the packed form of LSPET: dots on grey that do not touch."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    joints = np.ones((count, 14, 3), np.float32)
    for i in range(count):
        cell = rng.permutation(16)[:14]
        middle = np.stack([cell % 4, cell // 4], -1) + rng.uniform(0.35, 0.65, (14, 2))
        joints[i, :, :2] = (0.15 + 0.7 * middle / 4) * side
        photo = np.full((side, side, 3), 60, np.uint8)
        for k, (x, y, _) in enumerate(joints[i]):
            cv2.circle(photo, (round(16 * float(x)), round(16 * float(y))), 16 * dot, colour(k)[::-1], -1, shift=4)
        cv2.imwrite(str(folder / "images" / f"im{i + 1:05d}.png"), photo)
    np.savez(
        folder / "lspet.npz",
        image=np.array([f"im{i + 1:05d}.png" for i in range(count)]),
        joints=joints.astype(np.float32),
    )
    return joints


def packed(folder: Path) -> LSP:
    return LSP.packed([folder / "lspet.npz"], folder / "images")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Ten people, of whom `lspet()` holds out the last."""
    folder = tmp_path_factory.mktemp("lspet")
    draw(folder, 10, 80, 4)
    return folder


def eight(photos: Path, **change) -> PoseRun:
    """Trained and scored on the same eight people."""
    first = lambda path: replace(
        p := packed(path), ids=p.ids[:8], files=p.files[:8], xy=p.xy[:8], labelled=p.labelled[:8], visible=p.visible[:8],
        boxes=p.boxes[:8],
    )  # fmt: skip
    run = PoseRun(
        data=PhotoSet(str(photos), LSP14, first, first),
        net=lambda joints: on_trunk(SmallTrunk((16, 16, 16, 16), (1, 1, 1, 1), 16), Heatmap(sigma=1.5), joints, SIZE),
        plan=Plan(epochs=10, lr=4e-3), batch=8, augment=STILL, workers=0, flip_test=False,
    )  # fmt: skip
    return replace(run, **change)


def cpu(run: PoseRun, path: Path | None = None) -> PoseTask:
    return run.task(path, torch.device("cpu"))


# ---- the whole -----------------------------------------------------------------------------------------------------
def test_a_small_network_learns_eight_photos(photos, tmp_path):
    class Repeated(PoseTask):
        """An epoch of fifteen times all eight."""

        def steps(self):
            return 15

        def batches(self, epoch, random):
            for _ in range(15):
                yield from super().batches(epoch, random)

    run = eight(photos, plan=Plan(epochs=9, lr=8e-3, schedule=Cosine(9)))
    task = cpu(run)
    task.__class__ = Repeated
    assert task._steps == 1
    log = train_task(task, run.plan, tmp_path, cpu=True)
    assert log[0]["PCK@0.2"] < 0.6
    assert log[-1]["PCK@0.2"] > 0.9
    assert log[-1]["1 - PCK@0.2"] == pytest.approx(1 - log[-1]["PCK@0.2"])
    assert log[-1]["loss"] < 0.3 * log[0]["loss"]
    # Eight pairs of crops, four in a row, enlarged to 256 pixels.
    assert read_image(tmp_path / "samples.png").shape == (2 * 256, 4 * 2 * 256, 3)


def test_a_run_goes_on_to_the_same_numbers(photos, tmp_path):
    augment = Augmentation(colours=Colours(), drop=Cutout())
    run = eight(
        photos, augment=augment, flip_test=True, batch=4, plan=Plan(epochs=3, lr=1e-3, ema=0.9, optimizer="adamw")
    )
    whole = train_task(cpu(run), run.plan, tmp_path / "whole", cpu=True)
    config = tmp_path / "tiny.py"
    config.write_text(TINY)
    short = replace(run.plan, epochs=1)
    train_task(cpu(run), short, tmp_path / "part", cpu=True)
    # The plan of a checkpoint must be that of the run: as --epochs would have written it.
    last = read_checkpoint(tmp_path / "part" / "last.pt") | {"plan": repr(run.plan)}
    torch.save(last, tmp_path / "part" / "last.pt")
    torch.manual_seed(99)
    again = train_task(cpu(run), run.plan, tmp_path / "part", resume=True, cpu=True)
    assert len(again) == 3 and again == whole


def test_the_command_trains_resumes_and_begins_elsewhere_only_if_asked(photos, tmp_path, capsys):
    config = tmp_path / "tiny.py"
    config.write_text(TINY)
    args = Train(config, data=photos, out=tmp_path / "run", epochs=1)
    assert train(args) == 0
    assert "1 epochs, best" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "run.json",
        "log.csv",
        "last.pt",
        "best.pt",
        "samples.png",
    }
    with pytest.raises(InputError, match="holds a run already"):
        train(args)
    with pytest.raises(InputError, match="another plan"):
        train(replace(args, resume=True, seed=3))
    best = read_checkpoint(tmp_path / "run" / "best.pt")["model"]
    net = on_trunk(SmallTrunk((8, 8, 8, 8), (1, 1, 1, 1), 8), SimCC(), LSP14, SIZE)
    net.load_state_dict(best)


# ---- what the user can get wrong -----------------------------------------------------------------------------------
def test_wrong_configs_are_refused_in_one_line(photos, tmp_path, capsys):
    config = tmp_path / "tiny.py"
    with pytest.raises(SystemExit) as stop:
        main(["train", str(config)])
    assert stop.value.code == 2 and "there is no such config" in capsys.readouterr().err
    config.write_text("run = 3")
    with pytest.raises(InputError, match=r"defines no `run = PoseRun"):
        read_config(config)
    config.write_text(TINY)
    with pytest.raises(InputError, match="--noisy is not for a PoseRun"):
        train_lifter(TrainLifter(config, data=photos, out=tmp_path / "run", noisy=True))
    with pytest.raises(InputError, match="Headed has no trunk of which there are such weights"):
        train(Train(config, data=photos, out=tmp_path / "run", start=tmp_path / "resnet50.pth"))
    with pytest.raises(InputError, match=r"holds no Leeds Sports Pose, extended \(joints.mat or lspet\*.npz\)"):
        train(Train(config, data=tmp_path, out=tmp_path / "run"))
    np.savez(
        tmp_path / "lspet.npz",
        image=np.array([f"im{n}.png" for n in range(10)]),
        joints=np.ones((10, 14, 3), np.float32),
    )
    with pytest.raises(InputError, match="annotations without photos"):
        train(Train(config, data=tmp_path, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_joints_of_network_and_photos_must_be_the_same(photos):
    with pytest.raises(InputError, match="speaks of mpii16, the photos' joints are lsp14"):
        cpu(eight(photos, net=lambda joints: small(MPII16, size=SIZE)))


def test_runs_of_every_kind_can_be_read():
    for name in ("lspet_small", "h36m_simple_baseline", "embedded_lifter", "pose_vae"):
        assert read_config(CONFIGS / f"{name}.py").plan.epochs > 0


@pytest.mark.parametrize(
    ("name", "joints", "millions"),
    [  # of the fact sheets of the papers and of mmpose; RLE with its flow
        ("lspet_hrnet_w32", LSP14, 28.5),
        ("coco_hrnet_w32", COCO17, 28.536),
        ("coco_simplebaseline_r50", COCO17, 34.0),
        ("coco_simcc_r50", COCO17, 36.753),
        ("coco_rle_r50", COCO17, 23.701),
        ("coco_vitpose_b", COCO17, 89.994),
        ("coco_tokenpose_b", COCO17, 13.5),
        ("mpii_hourglass_8", MPII16, 25.595),
        ("mpii_cpm", MPII16, 31.226),
    ],
)
def test_configs_build_the_published_networks(name, joints, millions):
    run = read_config(CONFIGS / f"{name}.py")
    assert isinstance(run, PoseRun)
    with torch.device("meta"):
        net = run.net(joints)
    assert net.joints == joints
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=3e-3)


def test_the_small_network_is_small():
    for codec in (Heatmap(), SimCC(), RLE()):
        net = small(codec=codec)
        assert sum(p.numel() for p in net.parameters()) < 3e6
        seen = net.eval().predict(torch.rand(2, 3, 128, 96), flip=True)
        assert seen.xy.shape == (2, 14, 2) and seen.xy.isfinite().all()


# ---- crops ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("memory", [0.0, 1.0])
@pytest.mark.parametrize(("side", "dot"), [(90, 4), (600, 20)])
@pytest.mark.parametrize("places", ["pixel", "msra", "udp"])
def test_pixels_and_keypoints_move_together(tmp_path, memory, side, dot, places):
    draw(tmp_path, 10, side, dot)
    augment = Augmentation(colours=None, half_body=HalfBody(chance=0.5), scale=0.3)
    net = on_trunk(SmallTrunk((8, 8, 8, 8), (1, 1, 1, 1), 8), Heatmap(places=places), LSP14, (96, 96))
    run = eight(tmp_path, augment=augment, memory=memory, net=lambda joints: net, batch=4)
    task = cpu(run)
    assert bool(task.training._kept) == (memory > 0)
    checked = mirrored = 0
    expected = torch.tensor([colour(k) for k in range(14)]) / 255
    for epoch in range(4):
        for batch in task.batches(epoch, torch.Generator().manual_seed(epoch)):
            for image, target in zip(batch.image, (batch.target[k] for k in range(4)), strict=True):
                inside = [k for k in range(14) if target.conf[k] > 0]
                assert ((target.xy[inside] > -0.5) & (target.xy[inside] < 95.5)).all()
                for k in inside:
                    if not (target.xy[k].min() > 2 and target.xy[k].max() < 93):
                        continue  # the border may be in the way
                    x, y = target.xy[k].round().int().tolist()
                    found = image[:, y, x]
                    swapped = (found - expected[LSP14.flip[k]]).abs().max() < 0.15
                    assert swapped or (found - expected[k]).abs().max() < 0.15
                    checked += 1
                    mirrored += int(swapped and LSP14.flip[k] != k)
    assert checked > 100
    assert mirrored > 20


def test_a_mirrored_person_keeps_its_colours_but_not_its_sides(tmp_path):
    draw(tmp_path, 10, 80, 4)
    still, turned = (cpu(eight(tmp_path, augment=replace(STILL, flip=chance))) for chance in (0.0, 1.0))
    (a,), (b,) = (list(t.batches(0, torch.Generator().manual_seed(1))) for t in (still, turned))
    torch.testing.assert_close(b.image, a.image.flip(-1), atol=1.5 / 255, rtol=0)
    x, y = a.target.xy.unbind(-1)
    expected = torch.stack([SIZE[1] - 1 - x, y], -1)[:, LSP14.flip]
    torch.testing.assert_close(b.target.xy, expected, atol=1e-3, rtol=0)


def test_half_of_the_processes_make_the_same_crops(photos):
    run = eight(photos, augment=Augmentation(drop=Cutout()), batch=4)
    one, two = cpu(run), cpu(replace(run, workers=2, memory=0.0))
    for a, b in zip(*(t.batches(0, torch.Generator().manual_seed(3)) for t in (one, two)), strict=True):
        torch.testing.assert_close(a.image, b.image, atol=0.02, rtol=0)
        torch.testing.assert_close(a.target.xy, b.target.xy)


def test_a_tenth_of_the_photos_is_held_out_with_all_of_their_people(tmp_path):
    draw(tmp_path, 20, 80, 4)
    twice = lambda path: LSP.packed([path / "lspet.npz"] * 2, path / "images")
    (_, learnt), (_, held_out) = PhotoSet(str(tmp_path), LSP14, twice).open(None)
    assert held_out == [9, 19, 29, 39]
    assert sorted(learnt + held_out) == list(range(40))


def test_of_less_than_ten_photos_none_can_be_held_out(tmp_path):
    draw(tmp_path, 9, 80, 4)
    with pytest.raises(InputError, match="9 photos in .*: a tenth is held out, so at least ten are needed"):
        PhotoSet(str(tmp_path), LSP14, packed).open(None)


@pytest.mark.parametrize("down", [0.0, 0.1])
def test_photos_are_kept_as_far_as_half_a_body_reaches(tmp_path, down):
    """People with spread arms far from the photo's border: the middle of the upper half is high above that of the person."""
    places = {
        "ankle": (15, 95), "knee": (15, 50), "hip": (15, 5), "wrist": (95, -55), "elbow": (60, -55), "shoulder": (25, -55),
        "neck": (0, -60), "top": (0, -95),
    }  # fmt: skip
    joints = np.ones((10, 14, 3), np.float32)
    for k, name in enumerate(LSP14.names):
        x, y = places[name.rpartition("_")[2]]
        joints[:, k, :2] = 450 + np.array([-x if name.startswith("right") else x, y])
    (tmp_path / "images").mkdir()
    files = [f"im{i + 1:05d}.png" for i in range(10)]
    for file in files:
        cv2.imwrite(str(tmp_path / "images" / file), np.full((900, 900, 3), 200, np.uint8))
    np.savez(tmp_path / "lspet.npz", image=np.array(files), joints=joints)
    net = on_trunk(SmallTrunk((8,) * 4, (1,) * 4, 8), Heatmap(), LSP14, (128, 96))
    run = eight(tmp_path, augment=Augmentation(half_body=HalfBody(chance=1.0)), net=lambda joints: net)
    task = cpu(replace(run, data=replace(run.data, down=down)))
    assert task.training._kept
    for epoch in range(8):
        (batch,) = task.batches(epoch, torch.Generator().manual_seed(epoch))
        assert batch.image.min() > 0.7


def test_people_without_joints_or_extent_are_left_out(tmp_path):
    joints = draw(tmp_path, 10, 80, 4)
    joints[0, :, 2] = 0  # nothing annotated
    joints[1, 1:, 2] = 0  # a single joint
    np.savez(tmp_path / "lspet.npz", image=np.array([f"im{i + 1:05d}.png" for i in range(10)]), joints=joints)
    crops = Crops(packed(tmp_path), list(range(10)), lspet(), SIZE)
    assert crops.rows == list(range(2, 10))


def test_mpii_crops_are_those_of_hrnet():
    xy = torch.full((1, 16, 2), 50.0)
    people = MPII(
        joints=MPII16, ids=("a",), files=("a.jpg",), xy=xy, labelled=torch.ones(1, 16, dtype=torch.bool),
        visible=torch.ones(1, 16, dtype=torch.bool), boxes=torch.tensor([[0.0, 0.0, 200.0, 200.0]]), images=Path("."), source="",
    )  # fmt: skip
    crops = Crops(people, [0], mpii(), (256, 256))
    # Scale 1 around (100, 100): 250 pixels around (100, 115).
    assert crops.centre.tolist() == [[100, 115]] and crops.width.tolist() == [250]


def test_maps_are_composed_in_the_order_said():
    random = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.rand(*shape, generator=random).double()
    a, b = (crop_matrix(rand(5, 2), rand(5), rand(5), SIZE) for _ in range(2))
    xy = torch.rand(5, 3, 2, generator=random).double()
    torch.testing.assert_close(apply(compose(a, b), xy), apply(a, apply(b, xy)))
    torch.testing.assert_close(apply(compose(invert(a), a), xy), xy)


# ---- what teaches --------------------------------------------------------------------------------------------------
def test_information_is_dropped_when_asked_and_not_before(photos):
    plain = eight(photos, batch=8)
    dropping = replace(plain, augment=replace(STILL, drop=Cutout()), clean=2)
    a, b = cpu(plain), cpu(dropping)
    for epoch in range(3):
        (seen,), (cut,) = (list(t.batches(epoch, torch.Generator().manual_seed(epoch))) for t in (a, b))
        black = ((cut.image == 0).all(1) & (seen.image != 0).any(1)).float().mean()
        assert (black == 0) if epoch < 2 else (0.03 < black < 0.6)
        kept = ~(cut.image == 0).all(1, keepdim=True).expand_as(cut.image)
        torch.testing.assert_close(cut.image[kept], seen.image[kept])
        torch.testing.assert_close(cut.target.xy, seen.target.xy)
        assert torch.equal(cut.target.conf, seen.target.conf)


@pytest.mark.parametrize("codec", [Heatmap(), SimCC(), RLE()])
def test_unknown_joints_teach_nothing(photos, codec):
    task = cpu(eight(photos, net=lambda joints: on_trunk(SmallTrunk((8,) * 4, (1,) * 4, 8), codec, joints, SIZE)))
    (batch,) = task.batches(0, torch.Generator().manual_seed(0))
    known = batch.target.conf.clone()
    known[:, 3] = 0
    task.modules.eval()
    elsewhere = batch.target.xy.clone()
    elsewhere[:, 3] = 5.0
    loss = lambda xy: task.losses(batch._replace(target=Keypoints2D(xy, known, LSP14)))["loss"].item()
    assert loss(elsewhere) == pytest.approx(loss(batch.target.xy), rel=1e-6)
    moved = batch.target.xy.clone()
    moved[:, 4] = 5.0
    assert abs(loss(moved) - loss(batch.target.xy)) > 1e-6
    everything = Keypoints2D(batch.target.xy, batch.target.conf, LSP14)
    net = task.modules["net"]
    assert isinstance(net, PoseNet)
    torch.testing.assert_close(task.losses(batch)["loss"], net.loss(batch.image, everything))


def symmetric(joints, size) -> PoseNet:
    net = SymmetricNet(ResNet(BasicBlock, (1, 1, 1, 1)), StackedHourglass(1, len(joints), 16))
    return SymmetricPoseNet(net, Heatmap(), joints, size, PLAIN)


@pytest.mark.parametrize("build", [cpn_r50, symmetric], ids=["cpn", "symmetric"])
def test_the_loss_is_the_networks_own(photos, build):
    """Of networks whose outputs are not all taught alike, as the loop wraps them too."""
    task = cpu(eight(photos, net=lambda joints: build(joints, size=SIZE), batch=4))
    net = task.net.eval()
    batch = next(task.batches(0, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        own = net.loss(batch.image, batch.target)
        torch.testing.assert_close(task.losses(batch)["loss"], own)
        task.modules["net"] = nn.DataParallel(net)
        torch.testing.assert_close(task.losses(batch)["loss"], own)


def test_samples_are_drawn_more_sharply_from_epoch_to_epoch(photos):
    trunk = lambda: SmallTrunk((8,) * 4, (1,) * 4, 8)
    task = cpu(eight(photos, net=lambda joints: on_trunk(trunk(), SamplingArgmax(), joints, SIZE)))
    net = task.net.eval()
    for epoch, tau in ((0, 2.0), (10, 1.4), (30, 0.5)):
        (batch,) = task.batches(epoch, torch.Generator().manual_seed(0))
        expected = []
        with torch.no_grad():
            raw = net(batch.image)[-1]
            for codec in (SamplingArgmax(tau=tau), SamplingArgmax(tau=3.0)):
                torch.manual_seed(0)
                expected.append(codec.loss(raw, batch.target.xy, batch.target.conf, SIZE))
            torch.manual_seed(0)
            torch.testing.assert_close(task.losses(batch)["loss"], expected[0])
        assert abs(expected[0] - expected[1]) > 1e-4


def test_joints_that_are_not_annotated_or_leave_the_crop_are_unknown(tmp_path):
    joints = draw(tmp_path, 10, 80, 4)
    joints[:, 5, 2] = 0
    np.savez(tmp_path / "lspet.npz", image=np.array([f"im{i + 1:05d}.png" for i in range(10)]), joints=joints)
    large = replace(STILL, half_body=HalfBody(chance=1.0, least=0, padding=1.0), flip=1.0)
    (batch,) = cpu(eight(tmp_path, augment=large)).batches(0, torch.Generator().manual_seed(0))
    xy, conf = batch.target.xy, batch.target.conf
    inside = ((xy > -0.5) & (xy < 63.5)).all(-1)
    inside[:, LSP14.flip[5]] = False  # all are mirrored
    assert torch.equal(conf > 0, inside)
    assert 0.2 < conf.mean() < 0.9


# ---- how it is optimised -------------------------------------------------------------------------------------------
def test_each_block_of_a_vision_transformer_learns_slower_than_the_next():
    net = on_trunk(ViTPoseTrunk(ViT(16, 3, 2, SIZE)), Heatmap(), LSP14, SIZE)
    scales = layer_scales(net, 0.5)
    of = lambda part: {scale for name, scale in scales.items() if part in name}
    assert of("patch_embed") == of("pos_embed") == {0.5**4}
    assert [of(f"blocks.{i}.") for i in range(3)] == [{0.5**3}, {0.5**2}, {0.5}]
    assert of("last_norm") == of("decoder") == of(".head") == {1.0}
    assert set(scales) == {name for name, _ in net.named_parameters()}
    with pytest.raises(InputError, match="SmallTrunk has no `blocks`"):
        layer_scales(SmallTrunk(), 0.5)


def test_only_weights_decay_and_every_parameter_is_in_one_group(photos):
    task = cpu(eight(photos, net=lambda joints: on_trunk(ViTPoseTrunk(ViT(16, 2, 2, SIZE)), Heatmap(), joints, SIZE)))
    names = {id(p): name for name, p in task.modules["net"].named_parameters()}
    groups = task.groups("net")
    assert sorted(names[id(p)] for g in groups for p in g["params"]) == sorted(names.values())
    free = {names[id(p)] for g in groups if g.get("weight_decay") == 0 for p in g["params"]}
    assert {name for name in names.values() if name.endswith("bias") or "norm" in name or "pos_embed" in name} <= free
    assert all(name.endswith("bias") or "norm" in name or "pos_embed" in name or "decoder" in name for name in free)
    assert {g["scale"] for g in groups} == {1.0}


def test_layers_across_tokens_decay_and_tokens_do_not(photos):
    tokenizer = PoseTokenizer(14, 12, 64, 32, 64, 1, (32, 64), 32, 1, (32, 32))
    trunk = ResNet(BasicBlock, (1, 1, 1, 1))
    task = cpu(eight(photos, net=lambda joints: pct_on_trunk(trunk, tokenizer, joints, SIZE)))
    names = {id(p): name for name, p in task.modules["net"].named_parameters()}
    free = {names[id(p)] for g in task.groups("net") if "weight_decay" in g for p in g["params"] if p.ndim > 1}
    assert free == {"net.head.tokenizer.invisible_token"}


def test_the_loop_scales_the_learning_rate_of_a_group(photos, tmp_path):
    class Halved(PoseTask):
        def groups(self, name):
            part = lambda which: list(self.modules[name].get_submodule(f"net.{which}").parameters())
            return [{"params": part("trunk"), "scale": 0.0}, {"params": part("head"), "scale": 1.0}]

    run = eight(photos, plan=Plan(epochs=1, lr=1e-2, weight_decay=0.1, optimizer="rmsprop"))
    task = cpu(run)
    task.__class__ = Halved
    before = {name: p.detach().clone() for name, p in task.modules["net"].named_parameters()}
    train_task(task, run.plan, tmp_path, cpu=True)
    for name, p in task.modules["net"].named_parameters():
        assert torch.equal(p, before[name]) == (".head." not in name)


def test_a_trunk_begins_from_published_weights(tmp_path):
    resnet = ResNet(BasicBlock, (1, 1, 1, 1))
    state = {key: torch.randn_like(value.float()) for key, value in resnet.state_dict().items()}
    torch.save(state | {"fc.weight": torch.ones(1000, 512)}, tmp_path / "resnet.pth")
    net = on_trunk(PoseResNet(BasicBlock, (1, 1, 1, 1)), Heatmap(), LSP14, SIZE)
    head = {key: value.clone() for key, value in net.state_dict().items() if "deconv" in key or ".head." in key}
    begin_from(net, tmp_path / "resnet.pth")
    after = net.state_dict()
    assert all(torch.equal(after[f"net.trunk.{key}"].float(), state[key]) for key in state if "num_batches" not in key)
    assert all(torch.equal(after[key], value) for key, value in head.items())

    # MAE's names, of 14 x 14 patches: entry (row, column) is its number in the row.
    vit = ViT(16, 2, 2, (64, 96))
    renamed = lambda key: key.replace("patch_embed.", "patch_embed.proj.").replace("last_norm", "norm")
    mae = {renamed(key): torch.randn_like(value) for key, value in vit.state_dict().items()}
    columns = torch.arange(14.0).repeat(14)[None, :, None].expand(1, -1, 16)
    mae["pos_embed"] = torch.cat([torch.full((1, 1, 16), -3.0), columns], 1)
    torch.save({"model": mae | {"cls_token": torch.zeros(1, 1, 16)}}, tmp_path / "mae.pth")
    net = on_trunk(ViTPoseTrunk(vit), Heatmap(), LSP14, (64, 96))
    begin_from(net, tmp_path / "mae.pth")
    now = vit.state_dict()
    assert torch.equal(now["blocks.1.mlp.fc2.weight"], mae["blocks.1.mlp.fc2.weight"])
    assert torch.equal(now["last_norm.bias"], mae["norm.bias"])
    assert (now["pos_embed"][0, 0] == -3).all()
    table = now["pos_embed"][0, 1:].unflatten(0, (4, 6))
    expected = (torch.arange(6) + 0.5) * 14 / 6 - 0.5  # centres of six columns among fourteen
    torch.testing.assert_close(table[1, 1:5, 0], expected[1:5], atol=0.05, rtol=0)
    torch.testing.assert_close(table, table[:1].expand_as(table))
    with pytest.raises(InputError, match="not what was asked for"):
        begin_from(net, tmp_path / "resnet.pth")


def test_steps_may_begin_with_a_warm_up():
    assert [Steps((10,), warmup=4.0)(e) for e in (0.0, 1.0, 4.0, 10.0)] == pytest.approx([0, 0.25, 1, 0.1])


# ---- figures -------------------------------------------------------------------------------------------------------
def people(kind: type[People], joints, xy, labelled, **more) -> People:
    n = len(xy)
    return kind(
        joints=joints, ids=tuple(map(str, range(n))), files=tuple(map(str, range(n))), xy=xy, labelled=labelled,
        visible=labelled, boxes=torch.zeros(n, 4), images=Path("."), source="", **more,
    )  # fmt: skip


def planted(truth, errors, joints) -> Keypoints2D:
    """Predictions that are off by so many pixels, each in a direction of its own."""
    angle = torch.arange(errors.numel()).reshape(errors.shape) * 2.4
    xy = truth + errors[..., None] * torch.stack([angle.cos(), angle.sin()], -1)
    return Keypoints2D(xy, torch.ones_like(errors), joints)


def test_pck_by_hand():
    xy = torch.zeros(3, 14, 2)
    xy[:, LSP14.index("left_shoulder")] = torch.tensor([60.0, 0.0])
    xy[:, LSP14.index("right_hip")] = torch.tensor([0.0, 80.0])  # torsos of 100 pixels
    labelled = torch.ones(3, 14, dtype=torch.bool)
    labelled[0, LSP14.index("head_top")] = False
    labelled[2, LSP14.index("right_hip")] = False  # has no torso: none of its joints counts
    errors = torch.zeros(3, 14)
    errors[0, :3] = torch.tensor([9.9, 19.9, 20.1])
    errors[0, LSP14.index("head_top")] = 500
    errors[1, 5:7] = 30
    errors[2] = 70
    found = figures(people(People, LSP14, xy, labelled), [0, 1, 2], planted(xy, errors, LSP14))
    assert found == pytest.approx({"1 - PCK@0.2": 3 / 27, "PCK@0.2": 24 / 27, "PCK@0.1": 23 / 27})
    with pytest.raises(InputError, match="nobody of the 1 people to score has a reference for PCK"):
        figures(people(People, LSP14, xy, labelled), [2], planted(xy[2:], errors[2:], LSP14))


def test_pckh_by_hand():
    xy, labelled = torch.rand(2, 16, 2) * 100, torch.ones(2, 16, dtype=torch.bool)
    errors = torch.zeros(2, 16)
    errors[0, MPII16.indices(("pelvis", "thorax"))] = 300  # never counted
    errors[0, MPII16.index("left_wrist")] = 14.9
    errors[0, MPII16.index("right_wrist")] = 15.1
    errors[1] = 300  # of this one the head is unknown
    who = people(MPII, MPII16, xy, labelled, head_sizes=torch.tensor([30.0, math.nan]))
    found = figures(who, [0, 1], planted(xy, errors, MPII16))
    assert found == pytest.approx({"1 - PCKh@0.5": 1 / 14, "PCKh@0.5": 13 / 14, "PCKh@0.1": 12 / 14})


def test_ap_by_hand():
    xy = torch.rand(3, 17, 2, generator=torch.Generator().manual_seed(0)) * 100 + 50
    labelled = torch.ones(3, 17, dtype=torch.bool)
    person = lambda k: Person(
        np.concatenate([xy[k].numpy(), np.full((17, 1), 2)], -1), 8000.0, (50.0, 50.0, 100.0, 100.0)
    )
    truth = {"a": [person(0), person(1)], "b": [person(2)], "c": [person(0)]}
    who = people(COCO, COCO17, xy, labelled, photo_ids=("a", "a", "b"), photos={k: k for k in truth}, truth=truth)
    right = planted(xy, torch.zeros(3, 17), COCO17)
    assert figures(who, [0, 1, 2], right) == pytest.approx(
        {"1 - AP": 0, "AP": 1, "AP50": 1, "AP75": 1, "AR": 1}
    )  # photo c is not asked for
    errors = torch.zeros(3, 17)
    errors[1] = 400
    wrong = planted(xy, errors, COCO17)
    wrong = replace(wrong, conf=wrong.conf * torch.tensor([1.0, 0.9, 0.8])[:, None])
    # By score right, wrong, right: two of three people at precisions 1 and 2/3, which 101 recalls read 34 and 33 times.
    found = figures(who, [0, 1, 2], wrong)
    assert found["AR"] == pytest.approx(2 / 3)
    assert found["AP"] == pytest.approx((34 + 33 * 2 / 3) / 101)


def test_validation_is_in_pixels_of_the_photo(tmp_path):
    """A network that finds the dots by their colours scores 1, whatever the photos' sizes."""

    class Finder(PoseNet):
        def predict(self, image, flip=False):
            colours = torch.tensor([colour(k) for k in range(14)])[..., None, None] / 255
            close = ((image[:, None] - colours).abs().amax(2) < 0.1).float()
            y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float) for n in SIZE), indexing="ij")
            mean = lambda v: (close * v).sum((-1, -2)) / close.sum((-1, -2)).clamp_min(1)
            return Keypoints2D(torch.stack([mean(x), mean(y)], -1), torch.ones(len(image), 14), LSP14)

    draw(tmp_path, 10, 700, 18)
    for memory in (0.0, 1.0):
        net = Finder(nn.Conv2d(3, 3, 1), Heatmap(), LSP14, SIZE)
        task = cpu(eight(tmp_path, net=lambda joints, net=net: net, memory=memory))
        assert task.validate(net)["PCK@0.1"] == 1
