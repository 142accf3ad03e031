"""2D-3D pairs: which frames count, and windows at the ends of takes."""

import torch

from body3d.learn.lifting import LiftTask
from body3d.lift.baseline import SimpleBaseline3D
from body3d.lift.lifter import Lifter
from body3d.lift.takes import MocapScene, studio_cameras
from body3d.skeletons import H36M17


def scene(places: list[float]) -> MocapScene:
    """One clip of a figure of a person's size so many metres above the floor: whichever way a clip is turned, z stays."""
    torch.manual_seed(0)
    figure = torch.rand(17, 3) * torch.tensor([1.0, 0.3, 1.7]) - torch.tensor([0.5, 0.15, 0.0])
    xyz = figure + torch.tensor([[[0.0, 0.0, z]] for z in places])
    zero = torch.zeros(len(places), dtype=torch.int64)
    return MocapScene(xyz, zero, torch.tensor([0]), torch.tensor([len(places)]), torch.tensor([0]), ("somebody",))


def test_people_whom_the_image_cuts_do_not_count():
    """Four metres up nobody is whole in a view of 4 m from 5 m away."""
    takes = scene([0.0, 4.0, 0.2, 30.0]).takes([studio_cameras("54138969", 1)], torch.Generator().manual_seed(1))
    assert takes.counted.tolist() == [True, False, True, False]
    assert takes.index.tolist() == [0, 2]
    assert takes.xy[takes.index].abs().max() <= 1
    assert takes.xy.abs().max() < 4  # a lens model is not asked about what it cannot know
    # Neighbours in a window are there all the same.
    assert torch.equal(takes.windows(takes.index, 3)[0, 2], takes.xy[1])


def test_only_frames_that_count_are_trained_and_scored():
    data = scene([0.0, 4.0, 0.2, 30.0, -0.1]).takes([studio_cameras("54138969", 1)], torch.Generator().manual_seed(1))
    task = LiftTask(Lifter(SimpleBaseline3D(34, 51, width=8), H36M17), lambda random: data, data, batch=2)
    assert task.steps() == 2
    xy = torch.cat([batch[0] for batch in task.batches(0, torch.Generator().manual_seed(0))])
    assert len(xy) == 3 and xy.abs().max() <= 1
    assert len(data.index) == 3
