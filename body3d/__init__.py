"""From a photo, a video or keypoints to posed, skinned 3D people."""

__version__ = "0.1.0"
