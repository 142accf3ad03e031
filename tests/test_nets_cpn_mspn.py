import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from body3d import checkpoints
from body3d.codecs import Heatmap
from body3d.errors import InputError
from body3d.layers import Bottleneck
from body3d.nets import mspn as mspn_module
from body3d.nets.cpn import CPN, MegviiHeatmap, SupervisedPoseNet, cpn_r50, cpn_r101
from body3d.nets.mspn import MSPN, mspn_1, mspn_2, mspn_3, mspn_4
from body3d.nets.resnet import ResNet
from body3d.posenet import PLAIN, PoseNet
from body3d.skeletons import COCO17, MPII16
from body3d.types import Keypoints2D


# ---- published sizes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "millions", "billions"),
    [(cpn_r50, 27.407, 7.316), (cpn_r101, 46.399, 10.952), (mspn_1, 25.112, 5.07), (mspn_2, 56.800, 11.26),
     (mspn_4, 120.177, 23.64)],
)  # fmt: skip
def test_sizes_and_products(make, millions, billions):
    """Weights and multiply-accumulates as counted on the published code (of MSPN, mmpose's)."""
    with torch.device("meta"):
        net = make().net.eval()
    with FlopCounterMode(display=False) as counter:
        maps = net(torch.empty(1, 3, 256, 192, device="meta"))
    assert all(m.shape == (1, 17, 64, 48) for m in maps)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.0006)
    assert counter.get_total_flops() / 2e9 == pytest.approx(billions, rel=0.01)
    assert net(torch.empty(2, 3, 384, 288, device="meta"))[-1].shape == (2, 17, 96, 72)


@pytest.mark.parametrize(("stages", "millions"), [(1, 25.142), (2, 56.867), (3, 88.592), (4, 120.318)])
def test_the_authors_convolutions_have_biases(stages, millions):
    with torch.device("meta"):
        assert sum(p.numel() for p in MSPN(stages, 17, biases=True).parameters()) / 1e6 == pytest.approx(
            millions, abs=0.0006
        )


# ---- targets -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kernel", [5, 7, 9, 11, 15])
def test_targets_are_opencvs(kernel):
    """A blurred point of OpenCV's, at the cell that the joint lies in, at the border too."""
    xy = torch.tensor([[[101.4, 77.0], [2.0, 3.6], [190.9, 255.2], [-3.0, 20.0], [40.0, 256.0]]])
    target, inside = MegviiHeatmap(kernel).target(xy, (256, 192), (64, 48))
    assert inside.tolist() == [[True, True, True, False, False]]
    for j, (column, row) in enumerate([(25, 19), (0, 1), (47, 63)]):
        assert (column, row) == (int((xy[0, j, 0] + 0.5) // 4), int((xy[0, j, 1] + 0.5) // 4))
        points = np.zeros((64, 48), np.float32)
        points[row, column] = 1
        blurred = cv2.GaussianBlur(points, (kernel, kernel), 0)
        expected = torch.from_numpy(blurred / blurred[row, column] * 255)
        torch.testing.assert_close(target[0, j], expected, atol=2e-3, rtol=1e-4)


def test_coarser_levels_learn_wider_bumps():
    """Kernels 15, 11, 9, 7 and, of the last stage, 11, 9, 7, 5; only the finest of each mine hard joints."""
    with torch.device("meta"):
        nets = [cpn_r50(), mspn_1(), mspn_2(), mspn_3()]
    levels = [[(c.kernel, c.hardest) for c in net.codecs] for net in nets if isinstance(net, SupervisedPoseNet)]
    last = [(11, None), (9, None), (7, None), (5, 8)]
    first = [(15, None), (11, None), (9, None), (7, 8)]
    assert levels == [[(15, None), (11, None), (9, None), (7, None), (7, 8)], last, first + last, 2 * first + last]
    xy = torch.tensor([[[95.5, 127.5]]])
    areas = [MegviiHeatmap(k).target(xy, (256, 192), (64, 48))[0].sum().item() for k in (15, 11, 9, 7, 5)]
    assert areas == sorted(areas, reverse=True)


def test_decoding_by_hand():
    random = torch.Generator().manual_seed(0)
    maps = 255 * torch.rand(2, 3, 20, 15, generator=random)
    codec = MegviiHeatmap(blur=5)
    xy, conf = codec.decode(maps, (80, 60))
    for b in range(2):
        for j in range(3):
            padded = np.pad(maps[b, j].numpy(), 10)
            blurred = cv2.GaussianBlur(padded, (5, 5), 0)[10:-10, 10:-10]
            order = np.argsort(-blurred, axis=None)[:2]
            (y0, x0), (y1, x1) = (np.unravel_index(i, blurred.shape) for i in order)
            step = np.array([x1 - x0, y1 - y0]) / np.hypot(x1 - x0, y1 - y0)
            cell = np.array([x0, y0]) + 0.25 * step
            np.testing.assert_allclose(xy[b, j].numpy(), 4 * cell + 1.5, atol=1e-4)
            assert conf[b, j] == pytest.approx(float(maps[b, j, y0, x0]) / 255, rel=1e-5)


def test_bumps_are_read_within_a_cell():
    random = torch.Generator().manual_seed(1)
    xy = 20 + torch.rand(8, 17, 2, generator=random) * torch.tensor([150.0, 210])
    for codec in (MegviiHeatmap(), MegviiHeatmap(5, blur=5)):
        target, _ = codec.target(xy, (256, 192), (64, 48))
        seen, conf = codec.decode(target, (256, 192))
        assert (seen - xy).abs().max() < 4
        torch.testing.assert_close(conf, torch.ones(8, 17))
        # The mirrored crop says the same of the mirrored joints.
        mirrored = torch.stack([191 - xy[..., 0], xy[..., 1]], -1)[:, COCO17.flip]
        other, _ = codec.target(mirrored, (256, 192), (64, 48))
        torch.testing.assert_close(codec.mirror(other, COCO17.flip), target, atol=1e-3, rtol=0)


# ---- losses --------------------------------------------------------------------------------------------------------
class Given(nn.Module):
    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, image):
        return self.maps


def released_loss(maps, targets, refined, easy, weight):
    """Mean squared errors; of refined maps the mean of the 8 joints of each image with the largest."""
    total = torch.zeros(())
    for m, t, last in zip(maps, targets, refined, strict=True):
        square = (m - t).square().mean((-1, -2)) * weight
        if last:
            total = total + torch.stack([s.sort(descending=True).values[:8].mean() for s in square]).mean()
        else:
            total = total + easy * square.mean()
    return total


@pytest.mark.parametrize(
    ("make", "refined", "easy"), [(cpn_r50, [0, 0, 0, 0, 1], 0.5), (mspn_2, [0, 0, 0, 1] * 2, 0.25)]
)
def test_losses_are_the_released_ones(make, refined, easy):
    random = torch.Generator().manual_seed(2)
    xy = 10 + torch.rand(3, 17, 2, generator=random) * torch.tensor([170.0, 230])
    conf = torch.ones(3, 17)
    conf[0, 3] = conf[1, :12] = 0
    with torch.device("meta"):
        net = make()
    maps = [255 * torch.rand(3, 17, 64, 48, generator=random).requires_grad_() for _ in refined]
    net.net = Given(maps)
    targets = [codec.target(xy, (256, 192), (64, 48))[0] for codec in net.codecs]
    loss = net.loss(torch.zeros(3, 3, 256, 192), Keypoints2D(xy, conf, COCO17))
    assert loss.item() == pytest.approx(released_loss(maps, targets, refined, easy, conf).item(), rel=1e-5)
    nothing = net.loss(torch.zeros(3, 3, 256, 192), Keypoints2D(xy, torch.zeros(3, 17), COCO17))
    assert nothing == 0
    with pytest.raises(InputError, match="speaks of coco17, the targets are mpii16"):
        net.loss(torch.zeros(3, 3, 256, 192), Keypoints2D(xy[:, :16], conf[:, :16], MPII16))


def test_other_codecs_of_maps():
    with torch.device("meta"):
        net = mspn_1(codec=Heatmap())
    assert type(net) is PoseNet and net.codec == Heatmap()


# ---- structure -----------------------------------------------------------------------------------------------------
def settled(net):
    torch.manual_seed(0)
    for name, values in net.state_dict().items():
        if name.endswith("running_var"):
            values.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            values.normal_(0, 0.1)
    return net.eval()


def test_only_the_next_stage_hears_the_one_before():
    """Without the aggregation, the first stage says the same and the second something else."""
    net = settled(MSPN(2, 4, (1, 1, 1, 1)))
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        whole = net(image)
        assert len(whole) == 8
        for name, parameter in net.named_parameters():
            if ".aggregate." in name:
                parameter.zero_()
        deaf = net(image)
    for i in range(4):
        torch.testing.assert_close(deaf[i], whole[i])
        assert (deaf[4 + i] - whole[4 + i]).abs().max() > 1e-3
    names = {name for name, _ in net.named_parameters()}
    assert any(n.startswith("stages.0.up.0.aggregate") for n in names)
    assert not any(n.startswith("stages.1.up.0.aggregate") or n.startswith("stages.1.cross") for n in names)


def test_levels_hear_only_coarser_ones():
    """GlobalNet's maps at a level depend on that level and the coarser ones; the refined maps on all."""
    net = settled(CPN(ResNet(Bottleneck, (1, 1, 1, 1)), 3))
    levels = [level.detach().requires_grad_() for level in net.resnet.pyramid(torch.rand(1, 3, 64, 64))[::-1]]
    features, maps = net.global_net(levels)
    for i, m in enumerate([*maps, net.refine_net(features)]):
        slopes = torch.autograd.grad(m.square().sum(), levels, retain_graph=True, allow_unused=True)
        assert [s is not None and bool(s.abs().max() > 0) for s in slopes] == [k <= i for k in range(4)]


# ---- published weights ---------------------------------------------------------------------------------------------
def published_names(answer: str, folder) -> dict[str, torch.Tensor]:
    with np.load(folder / f"{answer}.npz") as arrays:
        pairs = zip(arrays["keys"].tolist(), arrays["shapes"].tolist(), strict=True)
        return {key: torch.zeros([int(n) for n in shape.split(",") if n]) for key, shape in pairs}


@pytest.mark.parametrize(("answer", "bgr", "biases"), [("mspn_2", True, True), ("mspn_2_mmpose", False, False)])
def test_colours_and_biases_follow_the_file(answer, bgr, biases, request, monkeypatch):
    state = published_names(answer, request.path.parent / "known_answers")
    monkeypatch.setattr(mspn_module, "read_published", lambda path: state)
    net = mspn_2(weights="published.pth")
    assert net.normalise.bgr == bgr and (net.net.top[0].bias is not None) == biases and not net.training
    own = {f"net.{key}": value for key, value in net.net.state_dict().items()}
    monkeypatch.setattr(mspn_module, "read_published", lambda path: own)
    assert mspn_2(weights="own.pth").normalise == net.normalise
    monkeypatch.setattr(mspn_module, "read_published", lambda path: state)
    with pytest.raises(InputError, match="published.pth holds .* not what was asked for"):
        mspn_1(weights="published.pth")


def test_published_weights_of_cpn(request, monkeypatch):
    state = published_names("cpn50", request.path.parent / "known_answers")
    state["refine_net.final_predict.2.bias"] += 7
    monkeypatch.setattr(checkpoints, "read_published", lambda path: state)
    net = cpn_r50(weights="published.pth")
    assert (net.net.refine_net.final_predict[2].bias == 7).all() and not net.training


def test_a_small_one_learns():
    """Three photos of coloured spots, by heart."""

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Sequential(nn.Conv2d(3, 16, 5, 4, 2), nn.ReLU())
            self.heads = nn.ModuleList(nn.Conv2d(16, 17, 3, padding=1) for _ in range(2))

        def forward(self, image):
            x = self.trunk(image)
            return [head(x) for head in self.heads]

    torch.manual_seed(0)
    codecs = (MegviiHeatmap(15), MegviiHeatmap(7, hardest=8))
    net = SupervisedPoseNet(Small(), codecs, (1.0, 2.0), COCO17, (64, 48), PLAIN)
    target = Keypoints2D(4 + torch.rand(3, 17, 2) * torch.tensor([40.0, 56]), torch.ones(3, 17), COCO17)
    image = torch.rand(3, 3, 64, 48)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    losses = []
    for _ in range(60):
        losses.append(net.loss(image, target))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
