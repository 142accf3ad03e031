"""Body models: the open body, SMPL, SMPL-H and SMPL-X."""

from body3d.body.model import BodyModel
from body3d.body.subset import SubsetModel

__all__ = ["BodyModel", "SubsetModel"]
