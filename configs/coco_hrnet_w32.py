"""HRNet-W32 at 256x192 (Sun et al., CVPR 2019) on COCO, by the paper's numbers: 74.4 AP on detected boxes.

It begins from ImageNet's weights: give HRNet's classification checkpoint (hrnet_w32-36af842e.pth) as --start.
"""

from body3d.learn.crops import coco
from body3d.learn.pose2d import PoseRun
from body3d.nets.hrnet import hrnet_w32
from body3d.train import Plan, Steps

run = PoseRun(data=coco(), net=hrnet_w32, plan=Plan(epochs=210, lr=1e-3, schedule=Steps((170, 200))), batch=128)
