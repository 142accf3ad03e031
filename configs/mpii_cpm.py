"""Convolutional pose machine at 368x368 (Wei et al., CVPR 2016) on MPII.

The network is the paper's layout with batch norm and the training that of mmpose, which has both: 87.6 PCKh@0.5 on the validation
set. The authors trained without batch norm, by stochastic gradient descent.
"""

import math

from body3d.augment import Augmentation
from body3d.learn.crops import mpii
from body3d.learn.pose2d import PoseRun
from body3d.nets.cpm import cpm
from body3d.train import Plan, Steps

STEPS = 22_246 // 64  # people of the training set in batches

run = PoseRun(
    data=mpii(),
    net=cpm,
    plan=Plan(epochs=210, lr=5e-4, schedule=Steps((170, 200), warmup=500 / STEPS)),
    batch=64,
    augment=Augmentation(scale=0.25, rotation=math.radians(30), half_body=None),
)
