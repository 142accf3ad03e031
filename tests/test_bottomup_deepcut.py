import itertools
import math

import pytest
import torch
from torch import Tensor

from body3d.bottomup.deepcut import (
    Candidates,
    GeometryModel,
    Grouping,
    Labelled,
    assemble,
    fit_geometry,
    fit_logistic,
    logits,
    objective,
    solve,
)
from body3d.bottomup.deepercut import (
    REFINE,
    DeeperCut,
    ImageModel,
    PairStatistics,
    PartMaps,
    Proposals,
    deepercut_loss,
    deepercut_r101,
    fit_image_model,
    group,
    incremental,
    propose,
    steps_of,
)
from body3d.dataset_joints import LSP14
from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.layers import Bottleneck
from body3d.nets.resnet import ResNet
from body3d.types import Keypoints2D

C = len(LSP14)


# ---- small programs, by trying everything --------------------------------------------------------------------------
def partitions(n: int):
    """Of n things, as group numbers."""

    def grow(numbers: tuple[int, ...], groups: int):
        if len(numbers) == n:
            yield numbers
            return
        for g in range(groups + 1):
            yield from grow((*numbers, g), max(groups, g + 1))

    return grow((), 0)


def exhaustive(prob: Tensor, pair: Tensor, single: bool = False) -> float:
    alpha, beta = ((1 - p).log() - p.log() for p in (prob.clamp(1e-7, 1 - 1e-7), pair))
    best = 0.0
    for label in itertools.product(range(-1, prob.shape[1]), repeat=len(prob)):
        parts = [d for d, c in enumerate(label) if c >= 0]
        if any(prob[d, label[d]] == 0 for d in parts):
            continue
        base = sum(float(alpha[d, label[d]]) for d in parts)
        for person in [(0,) * len(parts)] if single else partitions(len(parts)):
            pairs = [(a, b) for a, b in itertools.combinations(range(len(parts)), 2) if person[a] == person[b]]
            found = [(parts[a], parts[b]) for a, b in pairs]
            best = min(best, base + sum(float(beta[d, e, label[d], label[e]]) for d, e in found))
    return best


def random_program(D: int, kinds: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    prob = torch.rand(D, kinds, generator=random).double()
    prob[torch.rand(D, kinds, generator=random) < 0.15] = 0
    pair = 0.02 + 0.96 * torch.rand(D, D, kinds, kinds, generator=random).double()
    return prob, (pair + pair.permute(1, 0, 3, 2)) / 2


@pytest.mark.parametrize(("D", "kinds", "runs"), [(3, 3, 8), (4, 2, 8), (5, 2, 3), (6, 1, 4)])
@pytest.mark.parametrize("single", [False, True])
def test_the_program_finds_what_trying_everything_finds(D, kinds, runs, single):
    random = torch.Generator().manual_seed(D)
    for _ in range(runs):
        prob, pair = random_program(D, kinds, random)
        found = solve(prob, pair, single=single)
        assert found.optimal
        assert found.objective == pytest.approx(exhaustive(prob, pair, single), abs=1e-9)
        assert found.objective == pytest.approx(objective(prob, pair, found.label, found.person), abs=1e-9)
        assert ((found.label < 0) == (found.person < 0)).all()
        if single:
            assert found.person.max() <= 0


def test_what_is_known_stays():
    random = torch.Generator().manual_seed(1)
    for _ in range(5):
        prob, pair = random_program(5, 2, random)
        known = Grouping(torch.tensor([0, 1, -1, 0, -1]), torch.tensor([0, 1, -1, 0, -1]), 0.0)
        found = solve(prob, pair, known=known)
        assert found.label[[0, 1, 3]].tolist() == [0, 1, 0]
        assert found.person[0] == found.person[3] != found.person[1]
        assert found.objective >= exhaustive(prob, pair) - 1e-9


def test_transitivity_costs():
    """a with b and b with c, but a not with c: all or some are kept together, whatever is less."""
    prob = torch.full((3, 1), 0.5)
    pair = torch.full((3, 3, 1, 1), 0.5)
    for against, together in ((0.3, 3), (0.01, 2)):
        pair[0, 1] = pair[1, 0] = pair[1, 2] = pair[2, 1] = 0.8
        pair[0, 2] = pair[2, 0] = against
        person = solve(prob, pair).person
        assert int(person[person >= 0].bincount().max()) == together


def test_logits_are_odd_and_finite():
    p = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).double()
    cost = logits(p)
    assert cost.isfinite().all() and cost[2] == 0
    torch.testing.assert_close(cost, -cost.flip(0))
    assert cost[1] == pytest.approx(math.log(3))


def test_no_candidates_and_no_people():
    empty = solve(torch.zeros(0, 3), torch.zeros(0, 0, 3, 3))
    assert len(empty.label) == 0 and empty.objective == 0
    for prob in (torch.zeros(4, 3), torch.full((4, 3), 0.1)):
        nobody = solve(prob, torch.full((4, 4, 3, 3), 0.1))
        assert (nobody.label == -1).all() and nobody.objective == 0
        people = assemble(Candidates(torch.zeros(4, 3, 2), prob), nobody, JointSet("three", ("a", "b", "c"), (-1,) * 3))
        assert people.xy.shape == (0, 3, 2)
    with pytest.raises(InputError, match=r"4 candidates of 3 kinds need .* \(4, 4, 3, 3\), got \(4, 4, 2, 2\)"):
        solve(torch.zeros(4, 3), torch.zeros(4, 4, 2, 2))
    with pytest.raises(InputError, match="of 3 kinds, lsp14 has 14 joints"):
        assemble(Candidates(torch.zeros(4, 3, 2), torch.zeros(4, 3)), nobody, LSP14)


def test_candidates_of_one_part_are_one_joint():
    xy = torch.tensor([[10.0, 20], [14, 20], [50, 60], [300, 300]])
    candidates = Candidates(xy[:, None].expand(4, 2, 2), torch.tensor([[0.9, 0.1], [0.3, 0.1], [0.1, 0.8], [0.4, 0.2]]))
    grouping = Grouping(torch.tensor([0, 0, 1, -1]), torch.tensor([0, 0, 0, -1]), 0.0)
    people = assemble(candidates, grouping, JointSet("two", ("a", "b"), (-1, 0)))
    torch.testing.assert_close(people.xy[0], torch.tensor([[11.0, 20], [50, 60]]))
    torch.testing.assert_close(people.conf[0], torch.tensor([0.9, 0.8]))


# ---- crowds --------------------------------------------------------------------------------------------------------
POSE = {
    "ankle": (0.12, 1.0), "knee": (0.12, 0.55), "hip": (0.1, 0.1), "wrist": (0.3, 0.1), "elbow": (0.26, -0.2),
    "shoulder": (0.16, -0.45), "upper_neck": (0.0, -0.52), "head_top": (0.0, -0.8),
}  # fmt: skip


def person(random: torch.Generator, centre: tuple[float, float]) -> Tensor:
    """LSP's joints of somebody who stands facing us, about 180 pixels tall."""
    places = []
    for name in LSP14.names:
        side, _, part = name.partition("_")
        x, y = POSE[part] if part in POSE else POSE[name]
        places.append((x if side == "left" else -x, y))
    return torch.tensor(centre) + 100 * torch.tensor(places) + 4 * torch.randn(C, 2, generator=random)


def crowd(
    random: torch.Generator, people: int, apart: float = 75.0, twice: float = 0.2, off: float = 2.0
) -> tuple[Tensor, Labelled]:
    """Where the joints are, and a detector's candidates: every joint once or twice, `off` pixels off."""
    centre = [(100 + apart * n, 150 + 10 * float(torch.randn((), generator=random))) for n in range(people)]
    xy = torch.stack([person(random, c) for c in centre])
    who, part = (t.flatten() for t in torch.meshgrid(torch.arange(people), torch.arange(C), indexing="ij"))
    again = torch.rand(len(who), generator=random) < twice
    who, part = torch.cat([who, who[again]]), torch.cat([part, part[again]])
    return xy, Labelled(xy[who, part] + off * torch.randn(len(who), 2, generator=random), part, who)


def unaries(scene: Labelled, random: torch.Generator, wrong: int) -> tuple[Tensor, Tensor]:
    """Places and probabilities of the scene's candidates and of `wrong` others, which some parts are confused with."""
    noise = torch.rand(wrong, 2, generator=random) * torch.tensor([500.0, 300.0])
    prob = torch.zeros(len(scene.label) + wrong, C)
    known = torch.arange(len(scene.label))
    prob[known, scene.label] = 0.75 + 0.2 * torch.rand(len(known), generator=random)
    prob[known, torch.tensor(LSP14.flip)[scene.label]] += 0.05  # left and right look alike
    prob[len(known) :] = 0.25 * torch.rand(wrong, C, generator=random)
    return torch.cat([scene.xy, noise]), torch.where(prob > 0.04, prob.clamp_max(0.98), 0)


def assert_found(people: Keypoints2D, truth: Tensor, within: float = 15.0):
    assert len(people.xy) == len(truth)
    distance = (people.xy[:, None] - truth[None]).norm(dim=-1).amax(-1)
    assert sorted(distance.argmin(1).tolist()) == list(range(len(truth)))
    assert distance.amin(1).max() < within


@pytest.fixture(scope="module")
def geometry() -> GeometryModel:
    random = torch.Generator().manual_seed(7)
    return fit_geometry([crowd(random, 3)[1] for _ in range(25)], C, C=10.0)


def test_a_planted_crowd_comes_back_from_geometry(geometry):
    random = torch.Generator().manual_seed(0)
    for people in (1, 2):
        truth, scene = crowd(random, people, twice=0.1)
        xy, prob = unaries(scene, random, 3)
        prob = prob * (prob > 0.2)
        candidates = Candidates(xy[:, None].expand(-1, C, -1), prob)
        found = solve(prob, geometry.probability(candidates))
        assert_found(assemble(candidates, found, LSP14, least=4), truth)


def test_pairs_are_symmetric_and_mirror(geometry):
    random = torch.Generator().manual_seed(3)
    _, scene = crowd(random, 2)
    xy, prob = unaries(scene, random, 0)
    pair = geometry.probability(Candidates(xy[:, None].expand(-1, C, -1), prob))
    torch.testing.assert_close(pair, pair.permute(1, 0, 3, 2))
    # Renumbering the candidates renumbers the solution.
    order = torch.randperm(len(xy), generator=random)
    prob = prob * (prob > 0.2)
    one, other = solve(prob, pair), solve(prob[order], pair[order][:, order])
    assert one.objective == pytest.approx(other.objective, abs=1e-6)
    assert torch.equal(one.label[order], other.label)


# ---- terms that look at the image ----------------------------------------------------------------------------------
def perfect(scene: Labelled, truth: Tensor, xy: Tensor, prob: Tensor, random: torch.Generator, off: float) -> Proposals:
    """What a network would say, `off` pixels off: of candidates that are no part, something."""
    cell = (xy / 8).floor() * 8 + 3.5
    offset = 60 * torch.randn(len(xy), C, C, 2, generator=random)
    n = len(scene.label)
    rows = torch.arange(n)
    right = truth[scene.person] - cell[:n, None]
    offset[rows, scene.label] = right + off * torch.randn(n, C, 2, generator=random)
    mirror = torch.tensor(LSP14.flip)[scene.label]
    offset[rows, mirror] = right[:, torch.tensor(LSP14.flip)] + off * torch.randn(n, C, 2, generator=random)
    return Proposals(xy[:, None].expand(-1, C, -1), prob, cell, offset)


def image_scene(random: torch.Generator, people: int, wrong: int, off: float, twice: float = 0.2):
    truth, scene = crowd(random, people, twice=twice, off=min(off, 2.0))
    xy, prob = unaries(scene, random, wrong)
    return truth, scene, perfect(scene, truth, xy, prob * (prob > 0.2), random, off)


@pytest.fixture(scope="module")
def image_model() -> ImageModel:
    random = torch.Generator().manual_seed(5)
    learnt = [image_scene(random, 3, 0, 3.0, 0.5) for _ in range(15)]
    return fit_image_model([(said, scene.label, scene.person) for _, scene, said in learnt], C, C=1000.0)


def test_perfect_offsets_are_certain(image_model):
    random = torch.Generator().manual_seed(0)
    _, scene, said = image_scene(random, 3, 0, 0.0)
    pair = image_model.probability(said)
    d, e = torch.triu_indices(len(scene.label), len(scene.label), 1)
    p, together = pair[d, e, scene.label[d], scene.label[e]], scene.person[d] == scene.person[e]
    other = scene.label[d] != scene.label[e]
    assert p[together & other].min() > 0.99
    assert p[~together & other].max() < 0.01
    torch.testing.assert_close(pair, pair.permute(1, 0, 3, 2))


def test_crowds_come_back_and_steps_cost_little(image_model):
    """The incremental solution is never better than the whole program's, and at most 5 per cent worse."""
    random = torch.Generator().manual_seed(2)
    for people in (1, 2, 3):
        truth, _, said = image_scene(random, people, 4, 5.0)
        pair = image_model.probability(said)
        whole, steps = solve(said.prob, pair), incremental(said.prob, pair, steps_of(LSP14))
        assert whole.optimal and steps.optimal
        assert whole.objective - 1e-6 <= steps.objective <= 0.95 * whole.objective
        assert_found(assemble(said, whole, LSP14, 3), truth)
        assert_found(group(said, image_model, LSP14), truth)


def test_no_proposals(image_model):
    none = Proposals(torch.zeros(0, C, 2), torch.zeros(0, C), torch.zeros(0, 2), torch.zeros(0, C, C, 2))
    assert group(none, image_model, LSP14).xy.shape == (0, C, 2)
    with pytest.raises(InputError, match="of 14 kinds, two has 2 joints"):
        group(none, image_model, JointSet("two", ("a", "b"), (-1, 0)))


def test_a_wrong_first_step_costs():
    """What the first step joined stays joined, though the second would part it: the price of steps."""
    prob = torch.tensor([[0.9, 0], [0.9, 0], [0, 0.9], [0, 0.9]])
    pair = torch.full((4, 4, 2, 2), 0.5)
    for i, j, p in ((0, 1, 0.6), (0, 2, 0.99), (1, 3, 0.99), (0, 3, 0.001), (1, 2, 0.001), (2, 3, 0.5)):
        pair[i, j] = pair[j, i] = p
    whole, steps = solve(prob, pair), incremental(prob, pair, ((0,), (1,)))
    assert whole.person.unique().tolist() == [0, 1] and steps.person[0] == steps.person[1]
    assert steps.objective > whole.objective + 1


def test_the_papers_steps():
    names = [[LSP14.names[i] for i in step] for step in steps_of(LSP14)]
    assert set(names[0]) == {"left_shoulder", "right_shoulder", "upper_neck", "head_top"}
    assert set(names[1]) == {"left_elbow", "right_elbow", "left_wrist", "right_wrist"}
    assert len(names[2]) == 6
    assert steps_of(JointSet("legs", ("left_knee", "right_knee"), (-1, -1))) == ((0, 1),)


def test_logistic_regression_is_at_its_minimum():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=random).double() * torch.tensor([1.0, 10, 0.1]).double()
    same = (torch.rand(200, generator=random).double() < (2 * x[:, 0] + 0.3).sigmoid()).double()
    model = fit_logistic(x, same, C=2.0)
    w = torch.cat([model.weight, model.bias[None]]).requires_grad_()
    scaled = torch.cat([(x - x.amin(0)) / (x.amax(0) - x.amin(0)), torch.ones(200, 1)], 1)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(scaled @ w, same, reduction="sum")
    (slope,) = torch.autograd.grad(w @ w / 2 + 2.0 * loss, w)
    assert slope.abs().max() < 1e-2
    torch.testing.assert_close(model(x), (scaled @ w).sigmoid().detach())
    assert (fit_logistic(x, torch.ones(200).double())(x) == 0.5).all()


# ---- the network ---------------------------------------------------------------------------------------------------
def ideal_maps(people: Keypoints2D, h: int, w: int, statistics: PairStatistics) -> PartMaps:
    """As `PartMaps` is described, cell by cell."""
    joints = len(people.joints)
    score = torch.full((1, joints, h, w), -20.0)
    refine, offset = torch.zeros(1, joints, 2, h, w), torch.zeros(1, joints, joints, 2, h, w)
    for row, column, c in itertools.product(range(h), range(w), range(joints)):
        cell = torch.tensor([8.0 * column + 3.5, 8.0 * row + 3.5])
        distance = (people.xy[:, c] - cell).norm(dim=-1).where(people.conf[:, c] > 0, torch.inf)
        n = int(distance.argmin())
        if distance[n] > 17:
            continue
        score[0, c, row, column] = 12.0 - 0.2 * distance[n]
        refine[0, c, :, row, column] = (people.xy[n, c] - cell) / REFINE
        for b in range(joints):
            if b != c and people.conf[n, b] > 0:
                normalised = (people.xy[n, b] - cell - statistics.mean[c, b]) / statistics.deviation[c, b]
                offset[0, c, b, :, row, column] = normalised
    return PartMaps(score, refine, offset, score.clone())


THREE = JointSet("three", ("head_top", "left_hip", "right_hip"), (-1, 0, 0))


@pytest.fixture(scope="module")
def drawn() -> tuple[Keypoints2D, PairStatistics, PartMaps]:
    xy = torch.tensor([[[20.3, 11.2], [17.0, 60.7], [33.1, 58.2]], [[90.9, 20.1], [85.3, 77.7], [0.0, 0.0]]])
    people = Keypoints2D(xy, torch.tensor([[1.0, 1, 1], [1, 1, 0]]), THREE)
    statistics = PairStatistics(torch.randn(3, 3, 2) * 5, torch.rand(3, 3, 2) * 10 + 1)
    return people, statistics, ideal_maps(people, 12, 15, statistics)


def test_ideal_maps_cost_nothing_and_are_read_exactly(drawn):
    people, statistics, maps = drawn
    assert deepercut_loss(maps, [people], (96, 120), statistics) < 1e-4
    for changed in ("score", "refine", "offset", "early"):
        worse = maps._replace(**{changed: getattr(maps, changed).flip(-1)})
        assert deepercut_loss(worse, [people], (96, 120), statistics) > 0.01
    found = propose(maps, (96, 120), statistics)
    parts = set()
    for d, c in enumerate(found.prob.argmax(-1).tolist()):
        n = int((people.xy[:, c] - found.xy[d, c]).norm(dim=-1).argmin())
        parts.add((n, c))
        torch.testing.assert_close(found.xy[d, c], people.xy[n, c], atol=1e-3, rtol=0)
        for b in (b for b in range(3) if b != c and people.conf[n, b] > 0):
            torch.testing.assert_close(found.cell[d] + found.offset[d, c, b], people.xy[n, b], atol=1e-3, rtol=0)
    assert parts == {(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)}


def test_targets_are_made_where_the_maps_are(drawn):
    people, statistics, maps = drawn
    elsewhere = PartMaps(*(m.to("meta") for m in maps))
    assert deepercut_loss(elsewhere, [people], (96, 120), statistics).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_people_are_put_together_on_a_gpu(drawn, image_model):
    _, statistics, maps = drawn
    found = propose(PartMaps(*(m.cuda() for m in maps)), (96, 120), statistics)
    torch.testing.assert_close(found.xy.cpu(), propose(maps, (96, 120), statistics).xy, atol=1e-3, rtol=0)
    random = torch.Generator().manual_seed(2)
    _, _, said = image_scene(random, 1, 0, 5.0)
    grouping = solve(said.prob.cuda(), image_model.probability(said).cuda())
    assert assemble(said.to("cuda"), grouping, LSP14).xy.is_cuda
    torch.testing.assert_close(group(said.to("cuda"), image_model, LSP14).xy.cpu(), group(said, image_model, LSP14).xy)


def test_nobody_is_taught_and_proposed(drawn):
    _, statistics, maps = drawn
    nobody = Keypoints2D(torch.zeros(0, 3, 2), torch.zeros(0, 3), THREE)
    quiet = maps._replace(score=torch.full_like(maps.score, -20), early=torch.full_like(maps.score, -20))
    assert deepercut_loss(quiet, [nobody], (96, 120), statistics) < 1e-6
    assert propose(quiet, (96, 120), statistics).prob.shape == (0, 3)


def test_a_cell_with_two_parts_is_proposed_twice():
    score = torch.full((1, 3, 4, 4), -20.0)
    score[0, 0, 1, 2], score[0, 2, 1, 2] = 2.0, 1.0
    statistics = PairStatistics(torch.zeros(3, 3, 2), torch.ones(3, 3, 2))
    maps = PartMaps(score, torch.zeros(1, 3, 2, 4, 4), torch.zeros(1, 3, 3, 2, 4, 4), score)
    found = propose(maps, (32, 32), statistics)
    assert found.cell.tolist() == [[19.5, 11.5]] * 2
    a, b = (float(torch.tensor(v).sigmoid()) for v in (2.0, 1.0))
    torch.testing.assert_close(found.prob, torch.tensor([[a, 0, 0], [0, 0, b]]))


def test_statistics_of_pairs():
    xy = torch.tensor([[[0.0, 0], [1, 2], [5, 5]], [[10.0, 0], [13, 2], [0, 0]]])
    statistics = PairStatistics.of(xy, torch.tensor([[1.0, 1, 1], [1, 1, 0]]))
    torch.testing.assert_close(statistics.mean[0, 1], torch.tensor([2.0, 2]))
    torch.testing.assert_close(statistics.deviation[0, 1], torch.tensor([1.0, 1]))
    torch.testing.assert_close(statistics.mean[0, 2], torch.tensor([5.0, 5]))
    torch.testing.assert_close(statistics.mean, -statistics.mean.transpose(0, 1))


def test_heads_of_the_network():
    """K, 2 K and 2 K (K - 1) channels at stride 8, and all of it learns."""
    torch.manual_seed(0)
    net = DeeperCut(ResNet(Bottleneck, (1, 1, 2, 1), 16), THREE, early=1)
    maps = net(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, 3, 8, 12), (2, 3, 2, 8, 12), (2, 3, 3, 2, 8, 12), (2, 3, 8, 12)
    ]  # fmt: skip
    assert (maps.offset.diagonal(dim1=1, dim2=2) == 0).all()
    assert net.offset.out_channels == 2 * 3 * 2
    people = [Keypoints2D(torch.rand(n, 3, 2) * 60, torch.ones(n, 3), THREE) for n in (0, 2)]
    deepercut_loss(maps, people, (64, 96), PairStatistics(torch.zeros(3, 3, 2), torch.ones(3, 3, 2))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    with torch.device("meta"):
        paper = deepercut_r101(LSP14)
    own = sum(p.numel() for p in paper.parameters()) - (44_549_160 - 2_049_000)
    channels = C + 2 * C + 2 * C * (C - 1)
    assert own == channels * (9 * 2048 + 1) + C * (9 * 1024 + 1)
