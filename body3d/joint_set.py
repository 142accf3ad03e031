"""What a joint set is: named joints in an order, joined by bones. The sets themselves are in `skeletons`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

__all__ = ["JointSet", "both_sides", "joint_names", "mirrored", "tree"]


@dataclass(frozen=True)
class JointSet:
    """An ordered set of named joints; `parents[i]` is -1 at a root, `sigmas` are COCO's OKS spreads where published."""

    name: str
    names: tuple[str, ...]
    parents: tuple[int, ...] = field(repr=False)
    sigmas: tuple[float, ...] | None = field(default=None, repr=False)

    def __post_init__(self):
        if len(self.parents) != len(self.names):
            raise ValueError(f"{self.name}: {len(self.names)} names but {len(self.parents)} parents")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"{self.name}: a joint name occurs twice")
        if any(not -1 <= p < len(self.names) or p == i for i, p in enumerate(self.parents)):
            raise ValueError(f"{self.name}: a parent is not a joint of the set")
        if self.sigmas is not None and len(self.sigmas) != len(self.names):
            raise ValueError(f"{self.name}: {len(self.names)} names but {len(self.sigmas)} sigmas")

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, joint: object) -> bool:
        return joint in self.positions

    @cached_property
    def positions(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def index(self, name: str) -> int:
        if name not in self.positions:
            raise KeyError(f"{self.name} has no joint {name!r}; it has {', '.join(self.names)}")
        return self.positions[name]

    def indices(self, names: Sequence[str]) -> list[int]:
        return [self.index(n) for n in names]

    @cached_property
    def below_root(self) -> tuple[str, ...]:
        """All joints that have a parent, in order."""
        return tuple(name for name, parent in zip(self.names, self.parents, strict=True) if parent >= 0)

    @cached_property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(parent, child) pairs."""
        return tuple((p, i) for i, p in enumerate(self.parents) if p >= 0)

    @cached_property
    def flip(self) -> tuple[int, ...]:
        """The permutation that swaps left and right, read off the names."""
        return tuple(self.index(mirrored(n)) for n in self.names)


def mirrored(name: str) -> str:
    """The name of the joint on the other side: left_wrist -> right_wrist, mouth_upper_left_0 -> mouth_upper_right_0."""
    swap = {"left": "right", "right": "left"}
    return "_".join(swap.get(word, word) for word in name.split("_"))


def tree(name: str, lines: Sequence[str], sigmas: Sequence[float] | None = None) -> JointSet:
    """A joint set from lines "child<parent" (or "root"), in order; a parent may stand after its child."""
    pairs = [line.partition("<") for line in lines]
    names = tuple(child for child, _, _ in pairs)
    parents = tuple(names.index(parent) if parent else -1 for _, _, parent in pairs)
    return JointSet(name, names, parents, tuple(sigmas) if sigmas is not None else None)


def both_sides(*lines: str) -> tuple[str, ...]:
    """Each line with L_ replaced by left_, then by right_; lines without it once."""
    return tuple(
        line.replace("L_", side) for line in lines for side in (("left_", "right_") if "L_" in line else ("",))
    )


def joint_names(lines: Sequence[str]) -> tuple[str, ...]:
    """The joints of a tree's lines, without their parents."""
    return tuple(line.partition("<")[0] for line in lines)
