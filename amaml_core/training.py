"""Meta-training of theta, and of phi, by any optimiser, with validation, a history, early errors and resumable checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from .evaluation import Metric
from .flow import DivergenceError
from .identity import describe
from .learned import Learned, methods
from .loop import Callback, MetaStep, Run, check_functions, description, identity_of, tell, try_sampler
from .meta import Method, checked, mean, of_each, total
from .outer import MakeOptimizer, MakeScheduler, OuterLoop
from .problem import Problem
from .ranks import NO_TOKENS, Ranks, joined
from .settings import whole
from .tasks import Ragged, batches_of
from .validation import Best, Validation

SAVE_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class FitResult:
    """What meta-training gives.

    Attributes:
        theta: the trained initialisation (P,): the best one if there was a validation, the last one otherwise.
        history: one row for each meta step: ``meta_step`` (from 1), ``query_loss`` (mean over the tasks that did not
            diverge), ``gradient_norm`` (theta's and phi's together, before clipping), ``horizon`` where it is learned, and
            ``validation`` where there is one: NaN where it was not measured, infinite where a task diverged.
        method: the method, with the horizon or the step sizes that were learned, those that belong to theta.
        phi: the meta-parameters (M,) that belong to theta, or ``None``.
        last_theta, last_phi, last_method: those after the last meta step.
        best_step: the meta step after which theta was found; ``None`` without a validation, or with none that was finite.

    >>> from amaml_core import MAML
    >>> theta, history = torch.zeros(3), pd.DataFrame({"meta_step": [1], "query_loss": [0.5]})
    >>> FitResult(theta, history, MAML(), last_theta=theta, last_method=MAML()).theta.shape
    torch.Size([3])
    """

    theta: Tensor
    history: pd.DataFrame
    method: Method
    last_theta: Tensor
    last_method: Method
    phi: Tensor | None = None
    last_phi: Tensor | None = None
    best_step: int | None = None


class NotSaved(OSError):
    """Training has ended, and the checkpoint could not be written: the error's ``result`` is what fit would have returned.

    >>> try:
    ...     raise NotSaved(OSError(28, "No space left on device", "theta.safetensors"), None)
    ... except OSError as error:
    ...     print(error)
    [Errno 28] No space left on device; the result of the training is this error's `result`: 'theta.safetensors'
    """

    def __init__(self, cause: OSError, result: FitResult | None) -> None:
        super().__init__(cause.errno, f"{cause.strerror}; the result of the training is this error's `result`", cause.filename)
        self.result = result


def fit(
    method: Method,
    problem: Problem,
    sampler: Callable[[torch.Generator], Ragged],
    meta_steps: int,
    optimizer: MakeOptimizer | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    theta: Tensor | None = None,
    progress: bool = True,
    learn: str | None = None,
    *,
    phi: Tensor | None = None,
    scheduler: MakeScheduler | None = None,
    clip_norm: float | None = None,
    validation: Ragged | None = None,
    validate_every: int = 100,
    metric: Metric | None = None,
    lower_is_better: bool = True,
    patience: int | None = None,
    callbacks: Sequence[Callback] = (),
    multi_step: int = 0,
    distributed: bool = True,
) -> FitResult:
    """Meta-train the initialisation. Frozen parameters (``requires_grad=False``) keep their values to the bit.

    **In several processes.** A program that was started by ``torchrun``, or that has initialised ``torch.distributed``, calls fit
    in all its processes with the same arguments. They are the ranks of one run: each draws the whole meta-batch and solves its part
    of the tasks, the gradients are summed over all ranks, and each returns the same result. It is that of one process, up to
    rounding. (An adaptive solver, though, chooses its steps for the tasks of a rank together, as for those of a chunk.) Rank 0
    alone reads and writes the checkpoint, from which any number of ranks may go on, calls the callbacks and shows the progress. An
    error on one rank is raised on all. So is the death of a rank, at once, and the silence of one, after ten minutes. Model, theta
    and tasks of a rank live on its own device, such as ``cuda:LOCAL_RANK``, all of one kind, and nothing else of them or of the
    loss may depend on the rank; NCCL adds up what is on GPUs. Where there is no process group yet, fit starts that of ``torchrun``,
    which then stays until the process ends.

    Args:
        method: gives the meta-gradient; see :func:`amaml_core.meta_gradient`.
        problem: model and loss.
        sampler: ``sampler(generator) -> Tasks`` draws a meta-batch, or a list of Tasks of different sizes.
        meta_steps: number of meta updates.
        optimizer: ``optimizer([theta])`` builds a torch optimiser, for example ``lambda p: torch.optim.SGD(p, lr=0.01)``;
            Adam with learning rate 1e-3 by default. The list is ``[theta, phi]`` where phi is given, followed by what is learned
            of the method: ``lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:], "lr": 0.01}])`` gives theta and the
            others different rates. It is tried out on a copy first, and must move all of the list and nothing else.
        checkpoint: a safetensors file that is written every half minute, at an interrupt (Ctrl-C or SIGTERM) and at the end. If it
            exists, training goes on from it, to the same bits as an uninterrupted run; one of another method, model, loss,
            optimiser, sampler, validation, seed or precision (TF32, autocast), or of another version of this package or of
            PyTorch, is refused, with what differs, and so is one that another run is using. The sampler is tried out first: two
            draws from generators in the same state must be equal. Where the file cannot be written, as on a full disk, training
            warns, goes on and tries again. A run that has ended only reads it.
        seed: seeds the generator that the sampler draws from.
        theta: where to start (P,); the model's own parameters by default.
        progress: show a progress bar.
        learn: what of the method to learn along with theta, by the same optimiser, in its logarithm (so it stays
            positive): for A-MAML ``"horizon"``, or ``"step_sizes"`` (K, G), whose start is then given.
        phi: meta-parameters (M,) of the loss or of the method, where to start; trained along with theta.
        scheduler: ``scheduler(optimizer)`` builds a torch scheduler of the learning rate, for example
            ``lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=1000)``. It steps once in each meta step;
            ``ReduceLROnPlateau`` after each validation, with its value.
        clip_norm: shrink the meta-gradient to at most this norm, theta's and phi's part together.
        validation: tasks, or a list of Tasks of different sizes, that tell the best theta: the one that is returned.
        validate_every: after how many meta steps to measure; the last one is measured in any case.
        metric: of the validation, as in :func:`amaml_core.evaluate`, on the query sets after the method's own adaptation,
            as a mean over tasks; the query loss by default.
        lower_is_better: whether less of the metric is better.
        patience: stop after so many validations in a row without a better one.
        callbacks: functions that are called with a :class:`MetaStep` after each meta step, to log or to plot it. One that
            raises :class:`StopTraining` ends the training. What they return plays no part, and neither do they in the
            identity of a run: training goes on from a checkpoint with others. A fit within one takes ``distributed=False``.
        multi_step: MAML++'s multi-step loss, for a method with ``query_weights``: over so many meta steps the weights of the
            query loss after each of the K inner steps go from 1/K each to (0, ..., 0, 1).
        distributed: whether the processes of ``torch.distributed``, if there are several, share this run; otherwise each trains by
            itself.

    Raises:
        DivergenceError: loss, adapted parameters or gradient are not finite, or what the optimiser makes of theta.
        TypeError: an argument of another kind, or the optimiser cannot step on one gradient, or optimiser or scheduler have a
            state that a checkpoint cannot hold.
        OSError: the checkpoint cannot be written, which is tried first, or another run is using it; :class:`amaml_core.NotSaved`,
            with what was trained, if it could not be written at the end.
        ValueError: ``meta_steps`` < 1, ``seed`` < 0, the checkpoint belongs to another run, sampler, optimiser, scheduler or metric
            have a state that it could not hold, the optimiser moves other tensors than those it is given, the method cannot learn
            what it should, arguments that cannot work or do not go together, or ranks that were given different runs.
        RuntimeError: another rank has failed, has ended without a word, or does not answer.

    >>> from amaml_core import FOMAML, Tasks
    >>> problem = Problem(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss)
    >>> sampler = lambda generator: Tasks(*torch.randn(4, 3, 2, 1, generator=generator))
    >>> fit(FOMAML(), problem, sampler, meta_steps=5, progress=False).history.columns.tolist()
    ['meta_step', 'query_loss', 'gradient_norm']
    >>> tasks = sampler(torch.Generator().manual_seed(1))
    >>> found = fit(FOMAML(), problem, sampler, 20, progress=False, validation=tasks, validate_every=5, patience=2)
    >>> found.best_step in (5, 10, 15, 20)
    True
    """
    with torch.inference_mode(False), joined(distributed) as ranks:  # in that mode nothing could be differentiated
        meta_steps, seed = whole(meta_steps, "meta_steps", 1), whole(seed, "seed", 0)
        check_functions(callbacks, sampler=sampler, optimizer=optimizer, scheduler=scheduler)
        watched = Validation(validation, validate_every, metric, lower_is_better, patience)
        learned = None if learn is None else Learned(method, learn)
        method_at = methods(method, learned, multi_step)
        make = optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=1e-3))
        outer = OuterLoop(problem, theta, phi, learned, make, scheduler, clip_norm, kept=checkpoint is not None)
        watched.try_out(method, problem, outer, kept=checkpoint is not None)
        kind = outer.theta.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        settings: dict[str, Any] = {
            "method": method, "learn": learn, "multi_step": multi_step, "validation": watched or None, "seed": seed,
            "tf32": problem.tf32, "autocast": autocast,
        }  # fmt: skip
        further = {"meta_steps": meta_steps, "checkpoint": checkpoint is not None}
        ranks.same(lambda: description(problem, outer, settings | further))
        path, identity = None, {}
        if checkpoint is not None:
            path = None if ranks.rank else Path(checkpoint).resolve()  # a callback may change the folder
            identity = identity_of(problem, sampler, outer, settings | {"scheduler": scheduler})
            tasks = try_sampler(problem, sampler, seed, identity)
            checked(method, problem, outer.theta, tasks, outer.phi)  # before a file is written
        run = Run(outer, Best(watched), seed, path, identity)
        measure = lambda: watched.measure(outer.method(method), problem, outer, ranks)  # noqa: E731
        hidden = True if ranks.rank or not progress else None  # None: shown on a terminal
        with (
            run.opened(meta_steps, ranks),
            tqdm(total=meta_steps, initial=len(run.rows), desc=type(method).__name__, disable=hidden) as bar,
        ):
            stopped, last, first = False, None, len(run.rows) + 1
            while not run.over(meta_steps) and not stopped:
                began, lr, number = time.monotonic(), outer.lr, len(run.rows) + 1
                tasks = sampler(run.generator)
                if number == first:
                    ranks.same(lambda: describe({"tasks": tasks}))  # noqa: B023
                gradients, row = _estimate(method_at(number), problem, tasks, outer, number, ranks, run)
                with run.update():
                    with _naming(f"meta step {number} of {type(method).__name__}"):
                        outer.update(gradients)
                    seconds = time.monotonic() - began
                    value = measure() if watched.turn(number) else None
                    run.take(row, value)
                if watched and value is None and number == meta_steps:
                    value = last = measure()  # out of turn, so no part of the state: there may be more meta steps one day
                bar.update()
                bar.set_postfix(query_loss=f"{row['query_loss']:.4g}", refresh=False)
                if callbacks and not ranks.rank:
                    theta, phi = outer.theta.clone(), None if outer.phi is None else outer.phi.clone()
                    step = MetaStep(number, theta, phi, row["query_loss"], row["gradient_norm"], value, lr, seconds)
                    stopped = tell(callbacks, step)
                run.save(every=SAVE_EVERY_SECONDS)
                stopped = ranks.any(stopped)
            if ranks.size > 1:
                ranks.agree(run.tokens())  # after the last update, too
        if watched and not watched.turn(len(run.rows)):  # after the last save
            run.rows[-1]["validation"] = measure() if last is None else last
            run.best.take(len(run.rows), run.rows[-1]["validation"], outer.copies())
        best, end = run.best, outer.copies()
        theta, phi, found = outer.unpack(best.parameters if best.step else end, method)
        last_theta, last_phi, last_method = outer.unpack(end, method)
        result = FitResult(theta, run.history(), found, last_theta, last_method, phi, last_phi, best.step)
        if run.unsaved is not None:
            raise NotSaved(run.unsaved, result)
        return result


def _estimate(
    method: Any, problem: Problem, tasks: Ragged, outer: OuterLoop, number: int, ranks: Ranks, run: Run
) -> tuple[list[Tensor], dict[str, float]]:
    """The mean gradients (n,) of all that is trained, from one meta-batch of all ranks, and the meta step's row of the history."""
    theta, phi, sizes = outer.theta, outer.phi, [p.numel() for p in outer.parameters] + [1]
    summed = torch.zeros(1 + sum(sizes), dtype=torch.promote_types(theta.dtype, torch.float32), device=theta.device)
    with _naming(f"meta step {number} of {type(method).__name__}"):
        batches = checked(method, problem, theta, tasks, phi)
        if ranks.size > 1:
            mine = ranks.part(tasks)
            batches = batches_of(mine) if mine else []
        if batches:
            each = of_each(method, problem, theta, batches, phi)
            summed = total(each, [*outer.gradients(each), each.query_loss[:, None]]).to(summed)
    summed = ranks.sum(summed, run.tokens() if ranks.size > 1 else NO_TOKENS)
    with _naming(f"meta step {number} of {type(method).__name__}"):
        *means, query_loss = mean(summed).split(sizes)
    gradients = [gradient.to(theta) for gradient in means]
    learned = {} if outer.learned is None else outer.learned.number  # what the step is taken with
    return gradients, {"query_loss": query_loss.item(), "gradient_norm": outer.norm(gradients), **learned}


@contextmanager
def _naming(step: str) -> Iterator[None]:
    try:
        yield
    except DivergenceError as error:
        raise DivergenceError(f"{step}: {error}") from error
