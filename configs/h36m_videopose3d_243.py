"""VideoPose3D (Pavllo et al., CVPR 2019) with 243 frames on Human3.6M's true 2D, by the paper's numbers."""

from body3d.learn.lifting import H36MFiles, LifterRun
from body3d.lift.temporal import VideoPose3D
from body3d.train import Exponential, Plan

run = LifterRun(
    data=H36MFiles("gt"),
    net=lambda joints: VideoPose3D(len(joints), widths=(3, 3, 3, 3, 3)),
    plan=Plan(epochs=80, lr=1e-3, schedule=Exponential(0.95)),
    batch=1024,
    frames=243,
    flip=True,
    momentum=(0.1, 0.001),
)
