"""VideoPose3D (Pavllo et al., CVPR 2019) with 243 frames on free motion capture seen by Human3.6M's four cameras.

Smaller and shorter than the paper's: 256 channels, 3000 steps.
"""

from body3d.learn.lifting import FreeMocap, LifterRun
from body3d.lift.temporal import VideoPose3D
from body3d.train import Cosine, Plan

run = LifterRun(
    data=FreeMocap(),
    net=lambda joints: VideoPose3D(len(joints), widths=(3, 3, 3, 3, 3), channels=256, dropout=0.1),
    plan=Plan(epochs=20, lr=1e-3, schedule=Cosine(20)),
    batch=512,
    frames=243,
    flip=True,
    momentum=(0.1, 0.001),
    steps=150,
    every=16,
)
