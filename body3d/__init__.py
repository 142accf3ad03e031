"""From a photo or keypoints to posed, skinned 3D people.

The names below are the public ones; each is loaded when it is first used, so `import body3d` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from body3d.version import __version__

_HOME = {
    "BodyModel": "body3d.body.model",
    "Body": "body3d.types",
    "BodyParams": "body3d.types",
    "Boxes": "body3d.types",
    "Camera": "body3d.camera",
    "Detections": "body3d.types",
    "FitResult": "body3d.types",
    "InputError": "body3d.errors",
    "JointSet": "body3d.skeletons",
    "Keypoints2D": "body3d.types",
    "Keypoints3D": "body3d.types",
    "Mesh": "body3d.types",
    "Sample": "body3d.types",
    "detect_embedded": "body3d.detect.embedded",
    "fit_keypoints": "body3d.fit.smplifyx",
    "read_image": "body3d.images",
    "read_keypoints": "body3d.detect.files",
    "reconstruct": "body3d.pipeline",
    "save_glb": "body3d.export",
    "save_obj": "body3d.export",
    "save_ply": "body3d.export",
    "write_image": "body3d.images",
}
__all__ = [
    "Body", "BodyModel", "BodyParams", "Boxes", "Camera", "Detections", "FitResult", "InputError", "JointSet", "Keypoints2D",
    "Keypoints3D", "Mesh", "Sample", "detect_embedded", "fit_keypoints", "read_image", "read_keypoints", "reconstruct", "save_glb",
    "save_obj", "save_ply", "write_image", "__version__",
]  # fmt: skip

if TYPE_CHECKING:
    from body3d.body.model import BodyModel
    from body3d.camera import Camera
    from body3d.detect.embedded import detect_embedded
    from body3d.detect.files import read_keypoints
    from body3d.errors import InputError
    from body3d.export import save_glb, save_obj, save_ply
    from body3d.fit.smplifyx import fit_keypoints
    from body3d.images import read_image, write_image
    from body3d.pipeline import reconstruct
    from body3d.skeletons import JointSet
    from body3d.types import Body, BodyParams, Boxes, Detections, FitResult, Keypoints2D, Keypoints3D, Mesh, Sample


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"body3d has no {name!r}; its public names are {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__():
    return __all__
