"""Few-shot images: the seven rows of the paper's table, at its sizes and at one for a single core.

Chapter "Few-shot images, seven rows" shows the records. Also a program:
``python -m amaml_core.experiments.images_full --profile full --out results/full/images_full``. The cells of the paper's own sizes
need a GPU for hours. They can be cut off at any time, for example by ``timeout 480``: a checkpoint is never older than half a
minute, and the same command goes on from it. ``--only size=reduced`` is what one core can do in half an hour.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .. import (
    AMAML,
    FOMAML,
    IMAML,
    MAML,
    Euler,
    GradientDescent,
    HessianFree,
    Problem,
    Reptile,
    adapt,
    evaluate,
    fit,
    metrics,
)
from ..datasets import load_images
from ..flow import DivergenceError
from ..meta import Method
from ..numerics import detached
from ..records import Record
from ..samplers import ImageSampler, split_classes
from ..tasks import Tasks
from .cells import Cell, best_of, program
from .images import network
from .profiles import check_profile
from .ratings import rounded, seeded

RECORDS = Path(__file__).resolve().parents[2] / "results" / "full" / "images_full"
ROWS = ("MAML", "FOMAML", "Reptile", "iMAML-GD", "iMAML-HF", "A-MAML, T=0.5", "A-MAML, T=1.0")
TEST_STEPS = (0, 1, 2, 3, 5, 10, 20, 50)


@dataclass(frozen=True)
class Size:
    """A data set, its network, and how much is done with it. ``query`` counts drawings of each class, ``batch`` tasks."""

    data: str
    way: int
    filters: int
    query: int
    batch: int
    updates: int
    test_tasks: int
    pooled: bool = False
    trial_updates: int = 0  # of each trial of a choice; 0: nothing is chosen at this size


@dataclass(frozen=True)
class Recipe:
    """What a row does: inner steps in training and in test, their size, iMAML's λ, and where its paper says so, the outer loop."""

    steps: int
    inner_lr: float = 0.1
    test_steps: int | None = None  # as many as in training
    regularization: float | None = None
    batch: int | None = None  # of the size
    updates: int | None = None  # of the size


SIZES = {
    "smoke": {"tiny": Size("omniglot", 5, 4, query=2, batch=2, updates=3, test_tasks=10, trial_updates=2)},
    "book": {"reduced": Size("omniglot", 5, 32, query=5, batch=4, updates=100, test_tasks=100, trial_updates=30)},
    "full": {
        "reduced": Size("omniglot", 5, 32, query=5, batch=4, updates=500, test_tasks=600, trial_updates=100),
        "omniglot": Size("omniglot", 20, 64, query=5, batch=16, updates=60_000, test_tasks=600),
        "mini-imagenet": Size("mini-imagenet", 5, 32, query=15, batch=4, updates=60_000, test_tasks=600, pooled=True),
    },
}
ON_GPU = ("omniglot", "mini-imagenet")

# Three trials for each row at the reduced size, around the setting of its own paper for 20 characters. A-MAML's horizon is given
# by its row, so it chooses how many steps resolve it.
TRIALS: dict[str, tuple[Recipe, ...]] = {
    "MAML": (Recipe(5, 0.05), Recipe(5, 0.1), Recipe(5, 0.2)),
    "FOMAML": (Recipe(5, 0.05), Recipe(5, 0.1), Recipe(5, 0.2)),
    "Reptile": (Recipe(10, 0.05, 50), Recipe(10, 0.1, 50), Recipe(10, 0.2, 50)),
    "iMAML-GD": tuple(Recipe(16, 0.1, regularization=weight) for weight in (0.5, 2.0, 8.0)),
    "iMAML-HF": tuple(Recipe(3, 1.0, regularization=weight) for weight in (0.5, 2.0, 8.0)),
    "A-MAML, T=0.5": tuple(Recipe(k, 0.5 / k) for k in (3, 5, 10)),
    "A-MAML, T=1.0": tuple(Recipe(k, 1.0 / k) for k in (5, 10, 20)),
}
# The settings of the rows' own papers as far as they are known and as our methods have them: gradient descent in Reptile's inner
# loop where its authors have Adam, three Newton steps, an inner rate for iMAML. A-MAML's own are not known.
PUBLISHED: dict[str, dict[str, Recipe]] = {
    "omniglot": {
        "MAML": Recipe(5), "FOMAML": Recipe(5), "Reptile": Recipe(10, test_steps=50),
        "iMAML-GD": Recipe(25, regularization=2.0, batch=32, updates=20_000),
        "iMAML-HF": Recipe(3, 1.0, regularization=2.0, batch=32, updates=20_000),
        "A-MAML, T=0.5": Recipe(5), "A-MAML, T=1.0": Recipe(10),
    },
    "mini-imagenet": {
        "MAML": Recipe(5, 0.01, 10), "FOMAML": Recipe(5, 0.01, 10), "Reptile": Recipe(8, 0.01, 50, updates=100_000),
        "iMAML-GD": Recipe(10, 0.01, regularization=0.5), "iMAML-HF": Recipe(3, 1.0, regularization=0.5),
        "A-MAML, T=0.5": Recipe(50, 0.01), "A-MAML, T=1.0": Recipe(100, 0.01),
    },
}  # fmt: skip
# The number of the trial with the highest validation accuracy, by the ``choice`` records of the full profile; a test compares.
CHOSEN: dict[str, int] = {
    "MAML": 2,
    "FOMAML": 2,
    "Reptile": 2,
    "iMAML-GD": 0,
    "iMAML-HF": 1,
    "A-MAML, T=0.5": 0,
    "A-MAML, T=1.0": 0,
}


def recipe(row: str, size: str) -> Recipe:
    """The row's recipe at a size: published, or chosen among the trials."""
    return PUBLISHED[size][row] if size in PUBLISHED else TRIALS[row][CHOSEN[row]]


def make_method(row: str, recipe: Recipe) -> Method:
    """The method of a row. A-MAML takes Euler steps, so that at T = 0.5 in 5 steps it is MAML by another way."""
    lr, steps, weight = recipe.inner_lr, recipe.steps, recipe.regularization
    if row == "iMAML-GD":
        return IMAML(GradientDescent(lr, steps), weight, cg_steps=5, on_negative_curvature="truncate")
    if row == "iMAML-HF":
        return IMAML(HessianFree(cg_steps=5, steps=steps), weight, cg_steps=5, on_negative_curvature="truncate")
    if row.startswith("A-MAML"):
        return AMAML(lr * steps, Euler(steps))
    return {"MAML": MAML, "FOMAML": FOMAML, "Reptile": Reptile}[row](lr, steps)


@dataclass(frozen=True)
class Samplers:
    """Tasks for training, validation and test, of classes that do not overlap, and what the data are."""

    train: ImageSampler
    validation: ImageSampler | None  # where something is chosen
    test: ImageSampler
    description: str


def samplers(row: str, size: Size, recipe: Recipe, seed: int, device: torch.device) -> Samplers:
    """The samplers of a row.

    Omniglot: 1,200 characters to train with, of which 100 are for validation where something is chosen, 423 to test with,
    alphabets mixed, and every character also turned by 90, 180 and 270 degrees. mini-ImageNet: its own three parts. Reptile has
    no query loss; it trains on as many drawings as the others have in both sets, all of them in the support set, as its authors do.

    Raises:
        FileNotFoundError: the data are not prepared, at a size of the full profile.
    """
    stand_in = size not in SIZES["full"].values()
    shot = 1 + size.query if row == "Reptile" else 1
    if size.data == "omniglot":
        found = load_images("omniglot", allow_stand_in=stand_in, stand_in_classes=120)
        classes = len(found.images)
        held_out = classes * 100 // 1623 if size.trial_updates else 0
        split = split_classes(classes, torch.Generator().manual_seed(1000 + seed), classes * 1200 // 1623, held_out)
        images = torch.from_numpy(found.images.copy()).to(device)
        parts = [(images, chosen) for chosen in (split.train, split.validation, split.test)]
    else:
        parts = [(load_images(size.data, part, allow_stand_in=stand_in), None) for part in ("train", "val", "test")]
        found = parts[0][0]
        parts = [(torch.from_numpy(part.images.copy()).to(device), None) for part, _ in parts]
    turned = size.data == "omniglot"

    def make(part: int, shot: int, query: int, batch: int) -> ImageSampler:
        images, classes = parts[part]
        return ImageSampler(images, size.way, shot, query, batch, rotations=turned, classes=classes)

    return Samplers(
        make(0, shot, 1 if row == "Reptile" else size.query, recipe.batch or size.batch),
        make(1, 1, size.query, min(size.test_tasks, 100)) if size.trial_updates else None,
        make(2, 1, size.query, size.test_tasks),
        found.description,
    )


def one_at_a_time(problem: Problem, u: Tensor, tasks: Tasks) -> Tensor:
    """Accuracy (B,) when each query image is shown alone with the support images, so that batch norm cannot see the others.

    Reptile's authors call this *not transductive* (Nichol, Achiam, Schulman, On first-order meta-learning algorithms, 2018).
    """
    right = []
    for q in range(tasks.query_x.shape[1]):
        shown = torch.cat([tasks.support_x, tasks.query_x[:, q : q + 1]], dim=1)  # (B, S + 1, Ch, H, W)
        right.append(problem.predict(u, shown)[:, -1].argmax(-1) == tasks.query_y[:, q])  # (B,)
    return torch.stack(right, dim=1).float().mean(1)


def _problem(size: Size, seed: int, device: torch.device) -> Problem:
    channels = 1 if size.data == "omniglot" else 3
    model = seeded(network(size.filters, size.way, channels, size.pooled), torch.Generator().manual_seed(seed))
    # 25 test tasks at once fit any memory.
    return Problem(model.to(device), nn.functional.cross_entropy, compile=device.type == "cuda", chunk_size=25)


def _train(
    problem: Problem, method: Method, sampler: ImageSampler, updates: int, seed: int, checkpoint: Path | None = None
) -> Tensor:
    """The trained theta (P,)."""
    return fit(method, problem, sampler, updates, partial(torch.optim.Adam, lr=1e-3), checkpoint, seed, progress=False).theta


def adapt_all(method: Method, problem: Problem, theta: Tensor, tasks: Tasks, steps: int) -> Tensor:
    """What :func:`amaml_core.adapt` gives, refused where it is not finite.

    Raises:
        DivergenceError: the parameters of a task are not finite.
    """
    u = adapt(method, problem, theta, tasks, steps)
    if lost := int((~u.isfinite().all(1)).sum()):
        raise DivergenceError(f"the inner loop diverged on {lost} of {len(tasks)} tasks within {steps} steps")
    return u


# --------------------------------------------------------------------------------------------------------------- cells


def cells(profile: str, seed: int | None = None) -> list[Cell]:
    """Size × row, also those that need a GPU for hours, and the choices, which are always made with seed 0."""
    sizes = SIZES[check_profile(profile)]
    settings = [{"profile": profile, "size": size, "row": row} for size in sizes for row in ROWS]
    choices = [s | {"choice": len(TRIALS[s["row"]])} for s in settings if sizes[s["size"]].trial_updates]
    return [*(Cell("images_full", s, 0) for s in choices), *(Cell("images_full", s, seed or 0) for s in settings)]


def every_cell(profile: str) -> list[Cell]:
    """The cells that this machine can run: those of the paper's own sizes only where there is a GPU."""
    return [c for c in cells(profile) if torch.cuda.is_available() or c.settings["size"] not in ON_GPU]


def run(cell: Cell, scratch: Path) -> dict:
    """The figures of one cell: the accuracy on each test task, or the validation accuracy of each trial."""
    settings = cell.settings
    size, row = SIZES[settings["profile"]][settings["size"]], settings["row"]
    device = torch.device("cuda" if torch.cuda.is_available() and settings["size"] in ON_GPU else "cpu")
    if "choice" in settings:
        return _choose(row, size, cell.seed, device)
    own = recipe(row, settings["size"])
    state = zlib.crc32(repr((size, own)).encode())  # a checkpoint of other settings is not gone on from
    return _measure(row, size, own, cell.seed, device, scratch / f"{cell.name}.{state:08x}.safetensors")


def _measure(row: str, size: Size, recipe: Recipe, seed: int, device: torch.device, checkpoint: Path) -> dict:
    method, problem = make_method(row, recipe), _problem(size, seed, device)
    data = samplers(row, size, recipe, seed, device)
    started = time.perf_counter()
    theta = _train(problem, method, data.train, recipe.updates or size.updates, seed, checkpoint)
    trained = time.perf_counter() - started
    own = recipe.test_steps or recipe.steps
    most = own if isinstance(getattr(method, "inner", None), HessianFree) else max(*TEST_STEPS, own)
    steps = tuple(sorted({k for k in TEST_STEPS if k <= most} | {own}))
    tasks = data.test(torch.Generator().manual_seed(2000 + seed))
    found = evaluate(method, problem, theta, tasks, metrics.accuracy, steps)
    with detached(problem.tf32):
        alone = one_at_a_time(problem, adapt_all(method, problem, theta, tasks, own), tasks)
    return {
        "data": data.description,
        "size": asdict(size),
        "recipe": asdict(recipe),
        "steps": list(steps),
        "own_steps": own,
        "accuracy": rounded(found.pivot(index="step", columns="task", values="query")),  # (steps, tasks)
        "one_at_a_time": rounded(alone.cpu()),  # (tasks,), after own_steps
        "training_seconds": trained,  # of the call that finished it
    }


def _choose(row: str, size: Size, seed: int, device: torch.device) -> dict:
    """The mean validation accuracy of each trial of a row after a short training, and the number of the best.

    Raises:
        DivergenceError: all trials diverged.
    """
    accuracy: list[float | None] = []
    for trial in TRIALS[row]:
        method, problem = make_method(row, trial), _problem(size, seed, device)
        data = samplers(row, size, trial, seed, device)
        tasks = data.validation(torch.Generator().manual_seed(3000 + seed))
        try:
            theta = _train(problem, method, data.train, size.trial_updates, seed)
            u = adapt_all(method, problem, theta, tasks, trial.test_steps or trial.steps)
            with torch.no_grad():
                accuracy.append(metrics.accuracy(problem.predict(u, tasks.query_x), tasks.query_y).mean().item())
        except DivergenceError:
            accuracy.append(None)
    return {
        "trials": [asdict(trial) for trial in TRIALS[row]],
        "validation_accuracy": accuracy,
        "best": best_of(accuracy, f"every trial of {row} diverged: {TRIALS[row]}", max),
        "tasks": len(tasks),
        "updates": size.trial_updates,
    }


# ------------------------------------------------------------------------------------------------------------- records


def accuracy(records: Iterable[Record], size: str, row: str, transductive: bool = True) -> metrics.Interval | None:
    """Mean accuracy in per cent with its 95 % interval over the test tasks of all seeds; ``None`` where there is no record."""
    values: list[float] = []
    for record in records:
        settings, figures = record.configuration, record.figures
        if "choice" not in settings and (settings["size"], settings["row"]) == (size, row):
            of_step = figures["accuracy"][figures["steps"].index(figures["own_steps"])]
            values += of_step if transductive else figures["one_at_a_time"]
    return metrics.interval(100 * np.array(values)) if values else None


if __name__ == "__main__":
    program(__doc__, cells, run)
