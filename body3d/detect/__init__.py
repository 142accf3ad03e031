"""Front ends: an image, or a file of keypoints, in; `Detections` out."""

from body3d.detect.embedded import detect_embedded

__all__ = ["detect_embedded"]
