"""What the noise draws is what its constants say."""

import math

import pytest
import torch

from body3d.errors import InputError
from body3d.joint_set import JointSet
from body3d.lift import noise
from body3d.lift.noise import FREEDOM, LIMBS, MISSING_BELOW, PARTS, SWAPS, DetectorNoise, part, person_size, radius
from body3d.skeletons import COCO17, COCO_WHOLEBODY133, H36M17, MEDIAPIPE_FACE468

BODY23 = JointSet("body23", COCO_WHOLEBODY133.names[:23], COCO_WHOLEBODY133.parents[:23])
N = 40_000


def drawn(joints: JointSet, size: float = 200.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """True joints far apart (so that a swap cannot be taken for an error), noisy ones, confidences."""
    truth = 1e4 * torch.arange(2.0 * len(joints)).view(-1, 2).sin().expand(N, -1, -1)
    return truth, *DetectorNoise(joints).sample(truth, torch.full((N,), size), torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sample():
    return drawn(BODY23)


def lengths(sample) -> torch.Tensor:
    """The errors in sizes, sides put right; NaN where missing."""
    truth, xy, conf = sample
    error = torch.minimum((xy - truth).norm(dim=-1), (xy - truth[:, list(BODY23.flip)]).norm(dim=-1)) / 200
    return torch.where(conf > 0, error, torch.nan)


def test_median_and_tail_of_each_joint(sample):
    error = lengths(sample)
    for j, name in enumerate(BODY23.names):
        if part(name) == "small_toe":
            continue
        median = error[:, j].nanmedian().item()
        # People with missing joints are the harder ones: what is left is a little better.
        assert median == pytest.approx(PARTS[part(name)].median, rel=0.04), name
        tail = error[:, j].nanquantile(0.9).item() / median
        assert tail == pytest.approx(float(radius(torch.tensor(0.1))), rel=0.1), name
    assert not (error > noise.LARGEST + 1e-3).any()


def test_radius_is_student_t():
    random = torch.Generator().manual_seed(0)
    normal = torch.randn(N, 2, generator=random, dtype=torch.float64)
    chi2 = 2 * torch._standard_gamma(torch.full((N,), FREEDOM / 2, dtype=torch.float64), generator=random)
    drawn = (normal / (chi2 / FREEDOM).sqrt()[:, None]).norm(dim=-1)
    for exceeded in (0.75, 0.5, 0.1, 0.02):
        expected = drawn.quantile(1 - exceeded) / drawn.median()
        assert float(radius(torch.tensor(exceeded))) == pytest.approx(float(expected), rel=0.05)


def test_share_of_missing_joints(sample):
    _, xy, conf = sample
    for j, name in enumerate(BODY23.names):
        share = PARTS[part(name)].missing
        assert (conf[:, j] == 0).float().mean().item() == pytest.approx(share, abs=0.003), name
    assert (xy[conf == 0] == 0).all()
    assert (conf[conf > 0] >= MISSING_BELOW).all()
    assert (conf <= 1).all()


def test_share_of_swapped_people(sample):
    truth, xy, conf = sample
    swapped = (xy - truth[:, list(BODY23.flip)]).norm(dim=-1) < (xy - truth).norm(dim=-1)
    of = lambda group: swapped[:, [j for j, n in enumerate(BODY23.names) if part(n) in LIMBS[group] and "toe" not in n]]
    seen = lambda group: (
        conf[:, [j for j, n in enumerate(BODY23.names) if part(n) in LIMBS[group] and "toe" not in n]] > 0
    )
    legs, arms = ((of(g) | ~seen(g)).all(1) & seen(g).any(1) for g in ("legs", "arms"))
    assert (legs & arms).float().mean().item() == pytest.approx(SWAPS["all"], abs=0.004)
    assert (legs & ~arms).float().mean().item() == pytest.approx(SWAPS["legs"], abs=0.003)
    assert (arms & ~legs).float().mean().item() == pytest.approx(SWAPS["arms"], abs=0.002)
    eyes = swapped[:, BODY23.indices(("left_eye", "right_eye"))]
    assert torch.equal(eyes.all(1), legs & arms)
    assert not swapped[:, BODY23.index("nose")].any()


def test_errors_of_a_person_belong_together(sample):
    error = lengths(sample)[:, BODY23.indices(("left_wrist", "right_hip"))]
    error = error[~error.isnan().any(1)]
    rank = error.argsort(0).argsort(0).float()
    correlation = torch.corrcoef(rank.T)[0, 1].item()
    assert correlation == pytest.approx(6 / math.pi * math.asin(noise.SHARED / 2), abs=0.02)


def test_confidence_falls_with_the_error(sample):
    error, conf = lengths(sample)[:, BODY23.index("left_knee")], sample[2][:, BODY23.index("left_knee")]
    near, far = conf[error < 0.02], conf[error > 0.1]
    assert near.median() > 0.95 > far.median() > 0.5
    knee = PARTS["knee"]
    middle = conf[(error > 0.95 * knee.median) & (error < 1.05 * knee.median)]
    assert middle.logit().median().item() == pytest.approx(knee.logit, abs=0.15)


def test_scale_seed_dtype_and_shape():
    noise17 = DetectorNoise(H36M17)
    xy, size = torch.randn(2, 3, 17, 2), torch.rand(2, 3) + 0.5
    seeded = lambda seed: torch.Generator().manual_seed(seed)
    a, conf = noise17.sample(xy, size, seeded(1))
    assert a.shape == xy.shape and conf.shape == (2, 3, 17) and a.dtype == xy.dtype
    assert torch.equal(a, noise17.sample(xy, size, seeded(1))[0])
    assert not torch.equal(a, noise17.sample(xy, size, seeded(2))[0])
    torch.testing.assert_close(noise17.sample(10 * xy, 10 * size, seeded(1))[0], 10 * a)
    still = noise17.sample(xy, 0 * size, seeded(3))
    seen = still[1] > 0
    unmoved = (still[0] == xy).all(-1) | (still[0] == xy[..., list(H36M17.flip), :]).all(-1)
    assert unmoved[seen].all()


def test_person_size_is_of_the_limbs():
    xy = torch.zeros(17, 2)
    xy[COCO17.index("left_wrist")] = torch.tensor([30.0, -10.0])
    xy[COCO17.index("right_ankle")] = torch.tensor([5.0, 60.0])
    xy[COCO17.index("nose")] = torch.tensor([0.0, -500.0])
    known = torch.ones(17, dtype=torch.bool)
    assert person_size(xy, known, COCO17) == 70
    known[COCO17.index("right_ankle")] = False
    assert person_size(xy, known, COCO17) == 30
    assert person_size(xy, torch.zeros(17, dtype=torch.bool), COCO17) == 0


def test_joints_without_noise_are_named():
    with pytest.raises(InputError, match="not known for mesh_0"):
        DetectorNoise(MEDIAPIPE_FACE468)
