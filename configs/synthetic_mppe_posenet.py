"""3DMPPE's PoseNet (Moon et al., ICCV 2019) with 1.5 million weights on rendered people, crops of 128x128."""

from body3d.learn.pose3d import RegressRun
from body3d.learn.pose3d_data import RenderedScenes
from body3d.nets3d.regressors import posenet_128
from body3d.train import Cosine, Plan

EPOCHS = 60  # of about three minutes of one core

run = RegressRun(
    data=RenderedScenes(count=5000),
    net=posenet_128,
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
    true_depth=True,
)
