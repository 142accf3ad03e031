"""Parts of the direct 3D regressors that published implementations answer for."""

from torch import Tensor

from body3d.filters import OneEuro
from body3d.known_answers.question import Adapter, Question

__all__ = ["ADAPTERS"]


def _one_euro(q: Question) -> dict[str, Tensor]:
    """Output i with row i of the settings: frequency, lowest cut-off, beta, the derivative's cut-off."""
    return {str(i): OneEuro(*row)(q["x"]) for i, row in enumerate(q["settings"].tolist())}


def _one_euro_video(q: Question) -> dict[str, Tensor]:
    filtered = lambda cutoff, beta: OneEuro(1.0, float(cutoff), float(beta), derivative="filtered")(q["x"])
    return {"y": filtered(q["min_cutoff"], q["beta"]), "y2": filtered(1.0, 0.3)}


ADAPTERS: dict[str, Adapter] = {"one_euro": _one_euro, "one_euro_video": _one_euro_video}
