"""SimpleBaseline with ResNet-50 at 256x192 (Xiao, Wu & Wei, ECCV 2018) on COCO, by the paper's numbers: 70.4 AP.

It begins from ImageNet's weights: give torchvision's resnet50 as --start.
"""

import math

from body3d.augment import Augmentation
from body3d.learn.crops import coco
from body3d.learn.pose2d import PoseRun
from body3d.nets.resnet import simplebaseline_r50
from body3d.train import Plan, Steps

run = PoseRun(
    data=coco(),
    net=simplebaseline_r50,
    plan=Plan(epochs=140, lr=1e-3, schedule=Steps((90, 120))),
    batch=128,
    augment=Augmentation(scale=0.3, rotation=math.radians(40), half_body=None),
)
