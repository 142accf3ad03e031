"""SimCC on SimpleBaseline's ResNet-50 at 256x192 (Li et al., ECCV 2022) on COCO, by the released configuration.

It begins from ImageNet's weights: give torchvision's resnet50 as --start. The release's Gaussian labels have sigma 6 for this
trunk at 384x288, mmpose's at 256x192 too (72.1 AP).
"""

import math

from body3d.augment import Augmentation
from body3d.learn.crops import coco
from body3d.learn.pose2d import PoseRun
from body3d.nets.resnet import simcc_r50
from body3d.train import Plan, Steps

run = PoseRun(
    data=coco(),
    net=simcc_r50,
    plan=Plan(epochs=140, lr=1e-3, schedule=Steps((90, 120))),
    batch=128,
    augment=Augmentation(scale=0.3, rotation=math.radians(40), half_body=None),
)
