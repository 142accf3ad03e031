"""3DMPPE's PoseNet (Moon et al., ICCV 2019) with 2.5 million weights that begin from ImageNet, on rendered people: the first
half of its training, on crops of 128x128."""

from functools import partial

from body3d.learn.pose3d import RENDERED_TRAINING, RegressRun
from body3d.learn.pose3d_data import RenderedScenes
from body3d.nets.efficientnet_lite import imagenet_file
from body3d.nets3d.builders import posenet_lite
from body3d.train import Cosine, Plan

EPOCHS = 29  # of 11,400 crops, about four minutes of one core

run = RegressRun(
    data=RenderedScenes(count=15000),
    net=partial(posenet_lite, side=128),
    start=imagenet_file,
    plan=Plan(EPOCHS, 1e-3, Cosine(EPOCHS, warmup=0.2), "adamw", weight_decay=0.01, clip_norm=1.0, ema=0.99),
    batch=32,
    steps=356,
    augment=RENDERED_TRAINING,
    true_depth=True,
)
