"""One training loop for every network of the project.

A `Task` says what is trained: its networks, its data, its losses, its figure of merit. A `Plan` says how: epochs, learning rate
and schedule, optimiser, averaging, precision. `train` does the rest, the same way for all:

* on one processor or many and in mixed precision, through accelerate (`accelerate launch scripts/train.py ...`);
* a checkpoint after every epoch, written whole or not at all; a run that was killed goes on from it to the same numbers,
  because the state of every random generator of every process is part of it;
* a folder per run: `run.json` (task, plan, commit, versions), `log.csv`, `curves.png`, `last.pt`, `best.pt`, and `samples.png`
  where the task draws one.
"""

import csv
import json
import math
import subprocess
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from body3d.atomic import atomic, check_writable
from body3d.checkpoints import weights_in
from body3d.errors import InputError, MissingExtra

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "Plan",
    "Steps",
    "Task",
    "check_new",
    "finished",
    "read_checkpoint",
    "train",
    "weights_in",
]

LAST, BEST = "last.pt", "best.pt"
_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "adamw": partial(torch.optim.AdamW, fused=True),
    "rmsprop": torch.optim.RMSprop,
}
Log = list[dict[str, float | int]]  # a row per epoch


# ---- schedules: the learning rate's factor after so many epochs (a fraction counts) --------------------------------
@dataclass(frozen=True)
class Constant:
    def __call__(self, epoch: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from 1 to 0 after a linear warm-up."""

    epochs: int
    warmup: float = 0.0

    def __call__(self, epoch: float) -> float:
        if epoch < self.warmup:
            return epoch / self.warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - self.warmup) / (self.epochs - self.warmup))))


@dataclass(frozen=True)
class Exponential:
    """Multiplied by `factor` every `every` epochs, between them continuously."""

    factor: float
    every: float = 1.0

    def __call__(self, epoch: float) -> float:
        return self.factor ** (epoch / self.every)


@dataclass(frozen=True)
class Linear:
    epochs: int

    def __call__(self, epoch: float) -> float:
        return max(0.0, 1 - epoch / self.epochs)


@dataclass(frozen=True)
class Steps:
    """Multiplied by `factor` at each of the epochs `at`, after a linear warm-up."""

    at: tuple[int, ...]
    factor: float = 0.1
    warmup: float = 0.0

    def __call__(self, epoch: float) -> float:
        if epoch < self.warmup:
            return epoch / self.warmup
        return self.factor ** sum(epoch >= e for e in self.at)


# ---- what and how --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Plan:
    epochs: int
    lr: float
    schedule: Callable[[float], float] = Constant()
    optimizer: Literal["adam", "adamw", "rmsprop"] = "adam"
    weight_decay: float = 0.0
    clip_norm: float | None = None  # of the gradient of all of an optimiser's parameters
    ema: float | None = None  # validate and keep an exponential average of the weights with this decay per step
    precision: Literal["no", "fp16", "bf16"] = "no"
    seed: int = 0


class Task(ABC):
    """What is trained. `modules` holds all that has weights; each is one optimiser's unless `step` says otherwise."""

    modules: nn.ModuleDict
    main: str  # the module that is wanted in the end: averaged, validated, kept as the best

    @abstractmethod
    def batches(self, epoch: int, random: torch.Generator) -> Iterator[Any]:
        """The batches of one epoch, on the device that the modules are on. All chance comes from `random`."""

    @abstractmethod
    def steps(self) -> int:
        """How many batches one epoch has."""

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """The parts of the loss, weights included; their sum is minimised."""

    @abstractmethod
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures of the main module (or its average); the first is the one by which the best is chosen, less is better."""

    def groups(self, name: str) -> list[dict[str, Any]]:
        """The parameters of a module in groups: of each "params" and, where they differ from the plan's, "weight_decay" and
        "scale", by which the learning rate is multiplied."""
        return [{"params": list(self.modules[name].parameters())}]

    def picture(self, model: nn.Module) -> UInt8[np.ndarray, "H W 3"] | None:
        """What the main module (or its average) makes of some examples, drawn after every epoch; None: nothing to draw."""
        return None

    def step(self, batch: Any, update: "Update") -> dict[str, Tensor]:
        """One step of training. A task whose modules take turns (an adversary, say) overrides it."""
        losses = self.losses(batch)
        update(torch.stack(list(losses.values())).sum(), *self.modules)
        return losses


@dataclass(frozen=True)
class Update:
    """Called with a loss and the names of modules: one step of their optimisers down its gradient."""

    accelerator: Any
    modules: nn.ModuleDict
    optimizers: dict[str, torch.optim.Optimizer]
    clip_norm: float | None

    def __call__(self, loss: Tensor, *names: str) -> None:
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        for name in names:
            if self.clip_norm is not None:
                self.accelerator.clip_grad_norm_(self.modules[name].parameters(), self.clip_norm)
            self.optimizers[name].step()


# ---- the loop ------------------------------------------------------------------------------------------------------
def train(
    task: Task, plan: Plan, folder: Path | str, resume: bool = False, cpu: bool = False, description: Any = None
) -> Log:
    """Train, and return the log: one row per epoch with the mean of each loss and the figures of validation.

    `description` (a dataclass or text) goes to run.json beside the plan. InputError if the folder holds a run and `resume` is
    not asked for, if there is none to resume, or if it was made with another plan, other networks, another number of processes or
    on another kind of device.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import gather_object
    except ImportError as error:
        raise MissingExtra("accelerate", "train", "training") from error
    folder = Path(folder)
    check_writable(folder)
    accelerator = Accelerator(cpu=cpu, mixed_precision=plan.precision)
    rank, device = accelerator.process_index, accelerator.device

    task.modules.to(device)
    plain = dict(task.modules.items())
    optimise = _OPTIMIZERS[plan.optimizer]
    optimizers = {name: optimise(task.groups(name), lr=plan.lr, weight_decay=plan.weight_decay) for name in plain}
    average = None
    if plan.ema is not None:
        average = AveragedModel(plain[task.main], multi_avg_fn=get_ema_multi_avg_fn(plan.ema), use_buffers=True)
    random = torch.Generator(device).manual_seed(plan.seed + 1000 * rank)
    torch.manual_seed(plan.seed + 1000 * rank)  # dropout
    state = _State(plain, optimizers, average, random)
    if resume:
        log = _resume(folder, state, plan, rank, accelerator.num_processes)
    else:
        log = _begin(folder, plan, description, accelerator.is_main_process)
    for name in plain:
        task.modules[name], optimizers[name] = accelerator.prepare(plain[name], optimizers[name])
    update = Update(accelerator, task.modules, optimizers, plan.clip_norm)

    best = min((row["best"] for row in log), default=math.inf)
    steps = task.steps()
    for epoch in range(len(log), plan.epochs):
        task.modules.train()
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))
        bar = tqdm(total=steps, desc=f"epoch {epoch + 1}/{plan.epochs}", leave=False, mininterval=1.0)
        done = 0
        for batch in task.batches(epoch, random):
            lr = plan.lr * plan.schedule(epoch + done / steps)
            for optimizer in optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = lr * group.get("scale", 1.0)
            with accelerator.autocast():
                losses = task.step(batch, update)
            if average is not None:
                average.update_parameters(plain[task.main])
            for name, value in losses.items():
                sums[name] += value.detach()
            done += 1
            bar.update()
        bar.close()
        _check_finite(sums, epoch, folder)
        model = plain[task.main] if average is None else average.module
        task.modules.eval()
        model.eval()
        with torch.no_grad():
            figures = task.validate(model)
            picture = task.picture(model) if accelerator.is_main_process else None
        _check_finite(figures, epoch, folder)
        figure = next(iter(figures.values()))
        improved, best = figure < best, min(figure, best)
        log.append({
            "epoch": epoch + 1, "lr": lr, **{name: (s / done).item() for name, s in sums.items()}, **figures, "best": best,
        })  # fmt: skip
        chances = gather_object([state.chance()])
        if accelerator.is_main_process:
            if improved:
                with atomic(folder / BEST) as part:
                    torch.save({"epoch": epoch + 1, "figures": figures, "model": model.state_dict()}, part)
            state.save(folder / LAST, plan, log, chances)
            _write_log(folder, log, picture)
            tqdm.write(f"epoch {epoch + 1}/{plan.epochs}  {_words(log[-1])}")
    accelerator.wait_for_everyone()  # until the files are there
    return log


@dataclass(frozen=True)
class _State:
    """All that a checkpoint holds."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    average: AveragedModel | None
    random: torch.Generator

    def chance(self) -> dict[str, Any]:
        """Where the random numbers of this process stand."""
        here = {"device": self.random.device.type, "data": self.random.get_state(), "cpu": torch.get_rng_state()}
        return here | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})

    def save(self, path: Path, plan: Plan, log: Log, chances: list[dict[str, Any]]) -> None:
        content = {
            "plan": repr(plan),
            "log": log,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "average": None if self.average is None else self.average.state_dict(),
            "random": chances,  # of each process
        }
        with atomic(path) as part:
            torch.save(content, part)

    def load(self, content: dict[str, Any], chance: dict[str, Any]) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(content["modules"][name])
            self.optimizers[name].load_state_dict(content["optimizers"][name])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        self.random.set_state(chance["data"])
        torch.set_rng_state(chance["cpu"])
        if "cuda" in chance and torch.cuda.is_available():
            torch.cuda.set_rng_state(chance["cuda"])


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """The content of a checkpoint, tensors and plain values only. InputError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the archive makes it stumble on
        raise InputError(f"{path} is not a checkpoint, or is damaged: {str(error).splitlines()[0]}") from error


def finished(folder: Path, epochs: int) -> bool:
    """Whether the run in a folder has had so many. One that holds nothing but the best weights is somebody's copy of them."""
    if not (folder / LAST).exists():
        return (folder / BEST).exists()
    return len(read_checkpoint(folder / LAST)["log"]) >= epochs


def check_new(folder: Path) -> None:
    """InputError if the folder holds a run."""
    if (folder / LAST).exists():
        raise InputError(f"{folder} holds a run already: go on with it (--resume) or name another folder (--out)")


def _begin(folder: Path, plan: Plan, description: Any, write: bool) -> Log:
    check_new(folder)
    if write:
        about = {
            "plan": asdict(plan) | {"schedule": repr(plan.schedule)},
            "description": asdict(description)
            if is_dataclass(description) and not isinstance(description, type)
            else description,
            "torch": torch.__version__,
            "commit": _commit(),
        }
        with atomic(folder / "run.json") as part:
            part.write_text(json.dumps(about, indent=2, default=repr) + "\n")
    return []


def _resume(folder: Path, state: _State, plan: Plan, rank: int, processes: int) -> Log:
    content = read_checkpoint(folder / LAST)
    if content.get("plan") != repr(plan):
        raise InputError(
            f"{folder / LAST} was made with another plan: {content.get('plan')}; this run has {plan!r}: go on with the config and "
            "the --epochs that it was begun with, or begin in another folder (--out)"
        )
    chances, device = content["random"], state.random.device.type
    if len(chances) != processes:
        raise InputError(
            f"{folder / LAST} was made by {len(chances)} processes, this run has {processes}: start as many"
        )
    if chances[rank]["device"] != device:
        raise InputError(
            f"{folder / LAST} was made on {chances[rank]['device']}, this run is on {device}: go on where it was"
        )
    try:
        state.load(content, chances[rank])
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"{folder / LAST} holds other networks: {str(error).splitlines()[0]}") from error
    return content["log"]


def _write_log(folder: Path, log: Log, picture: UInt8[np.ndarray, "H W 3"] | None) -> None:
    from body3d.images import write_image
    from body3d.view.plot import curves

    with atomic(folder / "log.csv") as part, part.open("w", newline="") as lines:
        table = csv.DictWriter(lines, fieldnames=list(log[-1]))
        table.writeheader()
        table.writerows(log)
    if len(log) > 1:
        epochs = [row["epoch"] for row in log]
        named = {name: [row[name] for row in log] for name in log[-1] if name not in ("epoch", "lr", "best")}
        write_image(folder / "curves.png", curves(epochs, named, "epoch"))
    if picture is not None:
        write_image(folder / "samples.png", picture)


def _check_finite(values: Mapping[str, Any], epoch: int, folder: Path) -> None:
    if not all(math.isfinite(value) for value in values.values()):
        raise InputError(
            f"training diverged in epoch {epoch + 1} ({_words(values)}); {folder / LAST} holds the epoch before: "
            "lower the learning rate or clip the gradient"
        )


def _commit() -> str | None:
    """The commit of the working tree that this file is in, if it is in one."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {float(value):.4g}" for name, value in values.items() if name != "epoch")
