"""Correction of maps, on limbs of a fixed shape whose outer joint a predictor sees in the wrong place."""

from dataclasses import replace

import pytest
import torch
from test_pose2d import CONFIGS, SIZE, STILL, cpu, draw, packed
from torch import nn

from body3d.codecs import Heatmap, SimCC
from body3d.codecs.heatmap import gaussian_maps
from body3d.codecs.peaks import dark
from body3d.errors import InputError
from body3d.joint_set import tree
from body3d.learn.configs import read_config
from body3d.learn.crops import PhotoSet
from body3d.learn.pose2d import Batch, PoseTask
from body3d.learn.scai import SCAI, Adapted, SCAIRun, SCAITask, adapt, adapt_maps, correctable, limbs
from body3d.nets.small import SmallTrunk
from body3d.posenet import PLAIN, PoseNet, on_trunk
from body3d.skeletons import COCO17, LSP14, PANOPTIC15
from body3d.train import Plan, Update
from body3d.types import Keypoints2D

ARM = tree("arm", ("left_shoulder", "right_shoulder", "left_elbow<left_shoulder", "left_wrist<left_elbow"))
OUTER = ARM.index("left_wrist")
GRID, CODEC = (16, 16), Heatmap(sigma=1.5)


# ---- limbs ---------------------------------------------------------------------------------------------------------
def test_the_limbs_of_the_sets():
    coco, lsp = limbs(COCO17), limbs(LSP14)
    assert set(coco) == {f"{side}_{joint}" for side in ("left", "right") for joint in ("wrist", "ankle", "ear")}
    assert set(lsp) == {"head_top", "left_wrist", "right_wrist", "left_ankle", "right_ankle"}
    assert coco["right_ankle"] == ("right_knee", "right_hip", "left_hip")
    assert coco["right_ear"] == ("right_eye", "nose", "left_eye")
    assert all(len(inner) == 3 and outer not in inner for outer, inner in (coco | lsp).items())
    with pytest.raises(InputError, match="shoulders has no limbs of four joints"):
        limbs(tree("shoulders", ("left_shoulder", "right_shoulder")))
    assert "left_wrist" in limbs(PANOPTIC15)


# ---- a predictor that is wrong -------------------------------------------------------------------------------------
def arms(count: int, seed: int) -> torch.Tensor:
    """Joints in cells: one shape, anywhere on the map, each joint a little off."""
    random = torch.Generator().manual_seed(seed)
    shape = torch.tensor([[0.0, -4.0], [-4.0, -4.0], [1.0, -1.0], [-1.0, 2.0]])
    place = 6.5 + 4 * torch.rand(count, 1, 2, generator=random)
    return shape + place + 0.1 * torch.randn(count, 4, 2, generator=random)


class Wrong(nn.Module):
    """Gives the maps of the arm whose number is in the image's first pixel, the wrist moved by `off` cells."""

    def __init__(self, cells: torch.Tensor, off: torch.Tensor):
        super().__init__()
        moved = cells.clone()
        moved[:, OUTER] += off
        self.norm = nn.BatchNorm2d(4)  # that must stay as it is
        self.maps = gaussian_maps(moved, GRID, 1.5)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [self.norm(self.maps[image[:, 0, 0, 0].long()])]


class Numbered(PoseTask):
    """Batches of arms by number; pixels of the crop are the cells."""

    def __init__(self, net: PoseNet, cells: torch.Tensor):
        self.modules, self.cells = nn.ModuleDict({"net": net}), cells

    def steps(self):
        return 20

    def batches(self, epoch, random):
        for _ in range(self.steps()):
            rows = torch.randint(len(self.cells), (16,), generator=random)
            yield Batch(numbers(rows), Keypoints2D(self.cells[rows], torch.ones(16, 4), ARM))


def off(count: int, seed: int) -> torch.Tensor:
    """How far the trained network's wrists are from where they are, in cells."""
    return torch.tensor([2.0, 0.0]) + torch.randn(count, 2, generator=torch.Generator().manual_seed(100 + seed))


def numbers(rows: torch.Tensor) -> torch.Tensor:
    return rows.float()[:, None, None, None].expand(-1, 3, *GRID)


class AsSeen(nn.Module):
    """A prediction network that believes what the trained network says of the outer joint."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps[:, -1:]


def distance(maps: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    return (dark(maps[:, [OUTER]], None)[:, 0] - cells[:, OUTER]).norm(dim=-1)


@pytest.fixture(scope="module")
def trained() -> tuple[SCAI, list[dict[str, float]]]:
    """Learnt with wrists that are two cells off to the right, give or take; the prediction believes them."""
    torch.manual_seed(0)
    cells = arms(400, 0)
    base = PoseNet(Wrong(cells, off(400, 0)), CODEC, ARM, GRID, PLAIN)
    net = correctable(base, width=16, depth=2)
    scai = net.net
    assert isinstance(scai, SCAI)
    scai.limbs["left_wrist"].predict = AsSeen()
    task = SCAITask(Numbered(net, cells), first=8)
    optimizer = {"net": torch.optim.Adam(net.parameters(), lr=4e-3)}
    update = Update(Backward(), task.modules, optimizer, None)
    random, log = torch.Generator().manual_seed(0), []
    for epoch in range(12):
        net.train()
        for group in optimizer["net"].param_groups:
            group["lr"] = 4e-3 * (1 - epoch % 8 / 8)
        sums: dict[str, float] = {}
        for batch in task.batches(epoch, random):
            for name, loss in task.step(batch, update).items():
                sums[name] = sums.get(name, 0.0) + loss.item() / 20
        log.append(sums)
    net.eval()
    return scai, log


class Backward:
    """What `Update` needs of accelerate."""

    def backward(self, loss):
        loss.backward()


def test_stages_learn_one_after_the_other(trained):
    _, log = trained
    assert [set(row) for row in log] == [{"prediction", "feedback"}] * 8 + [{"correction"}] * 4
    assert log[7]["feedback"] < 0.5 * log[0]["feedback"]
    assert log[11]["correction"] < 0.5 * log[8]["correction"]


def test_correction_reduces_a_biased_predictors_error(trained):
    scai, _ = trained
    cells = arms(64, 1)
    maps = Wrong(cells, torch.tensor([2.0, 0.0])).eval().maps
    with torch.no_grad():
        better = scai.corrected(maps)
    before, after = distance(maps, cells), distance(better, cells)
    assert before.mean() == pytest.approx(2, abs=0.05)
    assert after.mean() < 1.0
    inner = [i for i in range(4) if i != OUTER]
    assert torch.equal(better[:, inner], maps[:, inner])


def test_the_self_referential_error_tells_the_true_one(trained):
    scai, _ = trained
    cells, random = arms(128, 2), torch.Generator().manual_seed(0)
    off = 2.5 * torch.randn(128, 2, generator=random) * torch.rand(128, 1, generator=random)
    maps = Wrong(cells, off).eval().maps
    (_, limb, inner, seen) = next(scai.parts(maps))
    with torch.no_grad():
        error = limb.error(seen, inner).square().mean((1, 2, 3)).sqrt()
    pearson = torch.corrcoef(torch.stack([error, off.norm(dim=-1)]))[0, 1]
    assert pearson > 0.5


def test_adaptation_lowers_the_error_and_leaves_the_network(trained):
    """Unlike those learnt from: the self-referential error never rises and falls on average, the true one does not rise."""
    scai, _ = trained
    cells = arms(12, 3)
    before = {key: value.clone() for key, value in scai.state_dict().items()}
    maps = Wrong(cells, torch.tensor([-1.0, 2.0])).eval().maps
    adapted = [adapt_maps(scai, one, steps=5) for one in maps.split(1)]
    errors = torch.stack([a.error for a in adapted])
    assert (errors.diff(dim=1) <= 1e-9).all()
    assert errors[:, -1].mean() < 0.9 * errors[:, 0].mean()
    with torch.no_grad():
        plain = distance(scai.corrected(maps), cells).mean()
    after = distance(torch.cat([a.maps for a in adapted]), cells).mean()
    assert after <= plain + 0.02
    assert all(torch.equal(value, before[key]) for key, value in scai.state_dict().items())


def test_adaptation_of_no_steps_is_the_correction(trained):
    scai, _ = trained
    maps = Wrong(arms(2, 4), torch.zeros(2)).eval().maps
    with torch.no_grad():
        better = scai.corrected(maps)
    for k in range(2):
        same = adapt_maps(scai, maps[k : k + 1], steps=0)
        assert isinstance(same, Adapted) and same.error.shape == (1,)
        torch.testing.assert_close(same.maps, better[k : k + 1], rtol=1e-5, atol=1e-6)


def test_right_wrists_are_left_alone(trained):
    """Adaptation to what is right already does not make it wrong."""
    scai, _ = trained
    cells = arms(8, 5)
    maps = Wrong(cells, torch.tensor([2.0, 0.0])).eval().maps  # as learnt: the correction is right
    with torch.no_grad():
        plain = distance(scai.corrected(maps), cells).mean()
    adapted = torch.cat([adapt_maps(scai, one).maps for one in maps.split(1)])
    assert distance(adapted, cells).mean() < plain + 0.2


# ---- networks and runs ---------------------------------------------------------------------------------------------
def test_at_first_nothing_is_corrected_and_the_base_stays():
    torch.manual_seed(0)
    base = on_trunk(SmallTrunk((8,) * 4, (1,) * 4, 8), CODEC, LSP14, SIZE).train()
    net = correctable(base, width=8, depth=2).train()
    scai = net.net
    assert isinstance(scai, SCAI) and not scai.base.training and scai.limbs.training
    before = {key: value.clone() for key, value in scai.base.state_dict().items()}
    maps, better = net(torch.rand(2, 3, *SIZE))
    predicted = {name: limb.eval().predicted(inner, seen) for name, limb, inner, seen in scai.parts(maps)}
    net.eval()
    torch.testing.assert_close(scai.corrected(maps), scai.replaced(maps, predicted))
    better.square().sum().backward()
    assert all(p.grad is None for p in scai.base.parameters())
    assert all(torch.equal(value, before[key]) for key, value in scai.base.state_dict().items())
    seen = adapt(net, torch.rand(2, 3, *SIZE), steps=1)
    assert seen.xy.shape == (2, 14, 2) and seen.xy.isfinite().all()
    with pytest.raises(InputError, match="sees crops of 64 x 64 pixels .height x width., got 128 x 128"):
        adapt(net, torch.rand(1, 3, 128, 128))
    with pytest.raises(InputError, match="maps of 16 x 16 cells cannot be halved 5 times: take a smaller depth"):
        correctable(base, width=8, depth=5)(torch.rand(1, 3, *SIZE))
    with pytest.raises(InputError, match="Headed cannot be adapted"):
        adapt(base, torch.rand(1, 3, *SIZE))
    with pytest.raises(InputError, match="SCAI corrects heat maps, which SimCC does not read"):
        correctable(on_trunk(SmallTrunk((8,) * 4, (1,) * 4, 8), SimCC(), LSP14, SIZE))


def test_a_run_goes_on_from_a_trained_network(tmp_path):
    draw(tmp_path, 10, 80, 4)
    net = lambda joints: on_trunk(SmallTrunk((8,) * 4, (1,) * 4, 8), CODEC, joints, SIZE)
    run = SCAIRun(
        PhotoSet(str(tmp_path), LSP14, packed, packed), net, Plan(epochs=1, lr=1e-3), 4, STILL, flip_test=False,
        workers=0, width=8, depth=2, first=1,
    )  # fmt: skip
    with pytest.raises(InputError, match="SCAI corrects a trained network: give best.pt"):
        cpu(run)
    torch.manual_seed(3)
    base = net(LSP14)
    torch.save({"model": base.state_dict()}, tmp_path / "best.pt")
    task = SCAIRun.task(replace(run, start=tmp_path / "best.pt"), None, torch.device("cpu"))
    assert isinstance(task, SCAITask)
    for key, value in task.net.base.state_dict().items():
        assert torch.equal(value, base.net.state_dict()[key])
    with torch.no_grad():
        figures = task.validate(task.modules["net"].eval())
    pose = PoseTask(base.eval(), task.pose.training, task.pose.validation, 4, STILL, flip_test=False)
    assert figures["uncorrected: 1 - PCK@0.2"] == pose.validate(base)["1 - PCK@0.2"]
    for epoch, parts in ((0, {"prediction", "feedback"}), (1, {"correction"})):
        batch = next(task.batches(epoch, torch.Generator().manual_seed(0)))
        losses = task.losses(batch)
        assert set(losses) == parts
        task.modules.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        learning = {n.split(".")[3] for n, p in task.modules["net"].named_parameters() if p.grad is not None}
        assert learning == ({"predict", "feedback"} if epoch == 0 else {"correct"})
    assert isinstance(read_config(CONFIGS / "lspet_scai.py"), SCAIRun)
