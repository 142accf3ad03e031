"""Eight stacked hourglasses (Newell, Yang & Deng, ECCV 2016) on MPII, by the paper's numbers: 90.9 PCKh@0.5 on the test set.

The paper lowers the learning rate once, to a fifth, when the figures stop to improve, and does not say for how long it trains:
epochs, steps and batch are those of bearpaw's code.
"""

from body3d.augment import MPII_TRAINING
from body3d.learn.crops import mpii
from body3d.learn.pose2d import PoseRun
from body3d.nets.hourglass import hourglass_8
from body3d.train import Plan, Steps

run = PoseRun(
    data=mpii(),
    net=hourglass_8,
    plan=Plan(epochs=100, lr=2.5e-4, schedule=Steps((60, 90)), optimizer="rmsprop"),
    batch=6,
    augment=MPII_TRAINING,
)
