"""The picture of a result: bars per joint, curves of shares over their threshold."""

import numpy as np
from jaxtyping import UInt8

from body3d.evaluate.result import Result
from body3d.view.plot import bars, curves

__all__ = ["picture"]


def picture(result: Result) -> UInt8[np.ndarray, "H W 3"]:
    """Of each figure the bars per joint (all figures in one chart where there are none), then the curves."""
    charts = []
    for figure in result.figures:
        title = f"{result.protocol}: {figure.name}, {figure.joints}, root {figure.root}, alignment {figure.alignment}"
        if figure.by_joint:
            charts.append(bars(figure.by_joint, title, f" {figure.unit}"))
        if figure.curve is not None:
            charts.append(curves(*_named(figure.name, figure.curve), "threshold", columns=1))
    if not charts:
        charts.append(bars({figure.name: figure.total for figure in result.figures}, result.protocol))
    width = max(chart.shape[1] for chart in charts)
    return np.concatenate(
        [np.pad(chart, ((0, 0), (0, width - chart.shape[1]), (0, 0)), constant_values=255) for chart in charts]
    )


def _named(name: str, curve: tuple[tuple[float, ...], tuple[float, ...]]):
    return curve[0], {name: curve[1]}
