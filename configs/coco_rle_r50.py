"""RLE with ResNet-50 at 256x192 (Li et al., ICCV 2021) on COCO, by the released configuration: 70.5 AP.

It begins from ImageNet's weights: give torchvision's resnet50 as --start. A half body needs more than three joints here.
"""

from body3d.augment import Augmentation, HalfBody
from body3d.learn.crops import coco
from body3d.learn.pose2d import PoseRun
from body3d.nets.resnet import rle_r50
from body3d.train import Plan, Steps

run = PoseRun(
    data=coco(),
    net=rle_r50,
    plan=Plan(epochs=270, lr=1e-3, schedule=Steps((170, 200))),
    batch=256,
    augment=Augmentation(scale=0.25, half_body=HalfBody(least=3)),
)
