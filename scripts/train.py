"""Train a network: `python scripts/train.py configs/lspet_hrnet_w32.py` (the same as `body3d train`)."""

from body3d.cli import run
from body3d.commands.train import Train, train

if __name__ == "__main__":
    run(Train, train, "train.py")
