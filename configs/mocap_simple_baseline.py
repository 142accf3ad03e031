"""SimpleBaseline-3D (Martinez et al., ICCV 2017) on free motion capture seen by Human3.6M's four cameras."""

from body3d.learn.lifting import FreeMocap, LifterRun
from body3d.lift.baseline import SimpleBaseline3D
from body3d.train import Cosine, Plan

run = LifterRun(
    data=FreeMocap(),
    net=lambda joints: SimpleBaseline3D(2 * len(joints), 3 * len(joints), width=512, dropout=0.1),
    plan=Plan(epochs=40, lr=3e-3, schedule=Cosine(40), clip_norm=1.0),
    batch=512,
    steps=150,
    standardise=True,
    every=16,
)
