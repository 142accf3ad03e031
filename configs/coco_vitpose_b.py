"""ViTPose-B at 256x192 (Xu et al., NeurIPS 2022) on COCO, by the released configuration: 75.8 AP.

The paper begins from MAE's weights, without which this transformer learns far worse: give mae_pretrain_vit_base.pth as --start.
"""

import math

from body3d.augment import Augmentation
from body3d.learn.crops import coco
from body3d.learn.pose2d import PoseRun
from body3d.nets.vitpose import vitpose_b
from body3d.train import Plan, Steps

STEPS = 149_813 // 512  # people of train2017 in batches

run = PoseRun(
    data=coco(),
    net=vitpose_b,
    plan=Plan(
        epochs=210,
        lr=5e-4,
        schedule=Steps((170, 200), warmup=500 / STEPS),
        optimizer="adamw",
        weight_decay=0.1,
        clip_norm=1.0,
    ),
    batch=512,
    augment=Augmentation(scale=0.5, rotation=math.radians(40)),
    layer_decay=0.75,
)
