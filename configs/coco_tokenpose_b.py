"""TokenPose-B at 256x192 (Li et al., ICCV 2021) on COCO, by the released configuration: 74.7 AP.

It begins from ImageNet's weights: give HRNet's classification checkpoint (hrnet_w32-36af842e.pth) as --start.
"""

from body3d.learn.crops import coco
from body3d.learn.pose2d import PoseRun
from body3d.nets.tokenpose import tokenpose_b
from body3d.train import Plan, Steps

run = PoseRun(data=coco(), net=tokenpose_b, plan=Plan(epochs=300, lr=1e-3, schedule=Steps((200, 260))), batch=128)
