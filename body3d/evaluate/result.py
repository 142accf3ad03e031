"""What an evaluation gives: figures that say what they are."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Figure", "Result"]


@dataclass(frozen=True)
class Figure:
    """One measure. Values are in `unit`; NaN where nothing was counted."""

    name: str  # MPJPE, 3DPCK@150mm ...
    unit: str  # mm, %, or empty for a fraction
    joints: str  # what is averaged over
    root: str  # what was put in place beforehand
    alignment: str
    total: float  # over all poses (over all joints that count, for shares of correct joints)
    counted: int  # poses, or images, behind the number
    by_action: dict[str, float] = field(default_factory=dict)
    by_joint: dict[str, float] = field(default_factory=dict)
    curve: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # of a share over its threshold

    @property
    def over_actions(self) -> float | None:
        """The mean of the actions' means, which is what tables of papers print; None without actions."""
        return sum(self.by_action.values()) / len(self.by_action) if self.by_action else None

    def describe(self) -> str:
        """One line: the number, its joints, root, alignment, unit and average."""
        unit = f" {self.unit}" if self.unit else ""
        actions = (
            ""
            if self.over_actions is None
            else f"; over the {len(self.by_action)} actions {self.over_actions:.2f}{unit}"
        )
        return (
            f"{self.name} {self.total:.2f}{unit} over {self.counted} poses{actions} "
            f"[joints: {self.joints}; root: {self.root}; alignment: {self.alignment}]"
        )


@dataclass(frozen=True)
class Result:
    protocol: str
    about: str
    figures: tuple[Figure, ...]

    def __getitem__(self, name: str) -> Figure:
        found = {figure.name: figure for figure in self.figures}
        if name not in found:
            raise KeyError(f"{self.protocol} has no {name!r}; it has {', '.join(found)}")
        return found[name]

    def describe(self) -> str:
        return "\n".join([f"{self.protocol}: {self.about}", *(f"  {figure.describe()}" for figure in self.figures)])

    def table(self) -> str:
        """A row per action, then per joint, a column per measure; what a measure does not have is a dash."""
        names = [f"{f.name}{' ' + f.unit if f.unit else ''}" for f in self.figures]
        rows: list[tuple[str, list[float | None]]] = [("all poses", [f.total for f in self.figures])]
        if any(f.by_action for f in self.figures):
            rows.append(("mean of actions", [f.over_actions for f in self.figures]))
        for part in ("by_action", "by_joint"):
            keys = dict.fromkeys(key for f in self.figures for key in getattr(f, part))
            rows += [(key, [getattr(f, part).get(key) for f in self.figures]) for key in keys]
        left = max(len(row[0]) for row in rows)
        lines = [" " * left + "  " + "  ".join(names)]
        for head, values in rows:
            cells = ("-" if v is None else f"{v:.2f}" for v in values)
            lines.append(f"{head:<{left}}  " + "  ".join(f"{c:>{len(n)}}" for c, n in zip(cells, names, strict=True)))
        return "\n".join(lines)

    def as_json(self) -> dict:
        return {
            "protocol": self.protocol,
            "about": self.about,
            "figures": [
                {
                    "name": f.name, "unit": f.unit, "joints": f.joints, "root": f.root, "alignment": f.alignment,
                    "poses": f.counted, "over_poses": f.total, "over_actions": f.over_actions,
                    "by_action": f.by_action, "by_joint": f.by_joint,
                    "curve": None if f.curve is None else {"threshold": f.curve[0], "value": f.curve[1]},
                }
                for f in self.figures
            ],
        }  # fmt: skip


def averaged(
    values: Float[Tensor, "N C"], columns: tuple[str, ...], actions: tuple[str, ...] | None, by_pose: bool
) -> tuple[float, dict[str, float], dict[str, float], int]:
    """(total, by action, by column, poses) of values that are NaN where they do not count.

    `by_pose`: every pose counts the same (errors); else every joint does (shares of correct joints).
    """
    over = (lambda rows: rows.nanmean(-1).nanmean().item()) if by_pose else (lambda rows: rows.nanmean().item())
    by_action = {}
    if actions is not None:
        for action in dict.fromkeys(actions):
            by_action[action] = over(values[torch.tensor([a == action for a in actions])])
    by_column = dict(zip(columns, values.nanmean(0).tolist(), strict=True)) if len(columns) > 1 else {}
    return over(values), by_action, by_column, int((~values.isnan()).any(-1).sum())
