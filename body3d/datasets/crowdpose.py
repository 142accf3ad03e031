"""CrowdPose (Li et al., CVPR 2019): crowds, 14 joints, about 80 000 people in 20 000 photos (10 000 train, 2000 val, 8000 test).

The layout is COCO's without `area`; its evaluation takes 0.53 of the box instead. It reports easy, medium and hard photos by their
`crowdIndex`, which is not read here.
"""

from pathlib import Path

from body3d.datasets.people import ScoredPeople, photo_folder, read_annotations
from body3d.skeletons import CROWDPOSE14

__all__ = ["CrowdPose"]

_SOURCE = "github.com/jeffffffli/CrowdPose"


class CrowdPose(ScoredPeople):
    @staticmethod
    def open(path: Path | str, images: Path | str | None = None) -> "CrowdPose":
        """crowdpose_{train,val,trainval,test}.json."""
        fields = read_annotations(path, {"keypoints": 14}, "json of CrowdPose", _SOURCE)
        return CrowdPose(joints=CROWDPOSE14, images=photo_folder(images, _SOURCE), **fields)
