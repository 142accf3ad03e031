"""`body3d weights get embedded`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from body3d.commands.shared import DONE


@dataclass(frozen=True)
class Weights:
    """Bring a detector's weights into the cache folder (BODY3D_CACHE), once."""

    action: tyro.conf.Positional[Literal["get"]]
    """Fetch them, or take them out of --wheel."""
    name: tyro.conf.Positional[Literal["embedded"]]
    """The detector that needs nothing else: MediaPipe's networks."""
    wheel: Path | None = None
    """The wheel of mediapipe 0.10.21 at hand, instead of a download."""


def weights(args: Weights) -> int:
    """Run `Weights`; the exit code."""
    from body3d.weights import get_embedded

    print(f"the embedded detector's models are in {get_embedded(args.wheel)}")
    return DONE
