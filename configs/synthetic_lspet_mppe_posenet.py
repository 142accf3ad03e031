"""3DMPPE's PoseNet on rendered people and, half and half, photos whose joints are marked in 2D alone, 128x128; after
synthetic_mppe_posenet_128.

The paper mixes MPII in for the same reason: a network that has seen one kind of image is lost on others.
"""

from functools import partial
from pathlib import Path

from body3d.learn.crops import lspet
from body3d.learn.pose3d import RENDERED_TRAINING, RegressRun
from body3d.learn.pose3d_data import Mixed, RenderedScenes
from body3d.nets3d.builders import posenet_lite
from body3d.skeletons import H36M17
from body3d.train import Cosine, Plan

EPOCHS = 3  # of 11,400 crops, about five minutes of one core

run = RegressRun(
    data=Mixed(RenderedScenes(count=15000), lspet(), H36M17),
    net=partial(posenet_lite, side=128),
    start=Path("runs/synthetic_mppe_posenet_128/best.pt"),
    plan=Plan(EPOCHS, 1e-3, Cosine(EPOCHS, warmup=0.2), "adamw", weight_decay=0.01, clip_norm=1.0, ema=0.99),
    batch=32,
    steps=356,
    augment=RENDERED_TRAINING,
    true_depth=True,
)
