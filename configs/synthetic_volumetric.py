"""Coarse-to-fine volumes (Pavlakos et al., CVPR 2017), two small stacks of 1 and 16 slices, on rendered people."""

from body3d.learn.pose3d import RegressRun
from body3d.learn.pose3d_data import RenderedScenes
from body3d.nets3d.regressors import volumetric_128
from body3d.train import Cosine, Plan

EPOCHS = 60  # of about ten minutes of one core

run = RegressRun(
    data=RenderedScenes(count=5000),
    net=volumetric_128,
    plan=Plan(
        EPOCHS,
        lr=2e-3,
        schedule=Cosine(EPOCHS, warmup=0.2),
        optimizer="adamw",
        weight_decay=0.01,
        clip_norm=1.0,
        ema=0.99,
    ),
    batch=16,
)
