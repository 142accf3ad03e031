"""SimpleBaseline-3D (Martinez et al., ICCV 2017) on Human3.6M with true 2D, by the paper's numbers.

The published TensorFlow code also clips each weight matrix to norm 1 (`max_norm=True`); later ports leave that out and gain.
"""

from body3d.learn.lifting import H36MFiles, LifterRun
from body3d.lift.baseline import SimpleBaseline3D
from body3d.train import Exponential, Plan

STEPS = 24_372  # 1,559,752 frames in batches of 64

run = LifterRun(
    data=H36MFiles("gt"),
    net=lambda joints: SimpleBaseline3D(2 * len(joints), 3 * len(joints)),
    plan=Plan(epochs=200, lr=1e-3, schedule=Exponential(0.96, every=100_000 / STEPS)),
    batch=64,
    loss="mse",
    standardise=True,
)
