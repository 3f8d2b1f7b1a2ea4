"""Validation in meta-training: tasks of their own, the best parameters so far, and when it is time to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import not_finite
from .evaluation import Metric, check_metric, errors_of
from .flow import DivergenceError
from .identity import describe, standing_still, stateful
from .meta import Diagnostics, Method, Pullback, checked, meta_gradient
from .outer import OuterLoop
from .problem import Problem
from .ranks import Ranks
from .settings import count
from .tasks import Tasks


@dataclass(frozen=True, eq=False)
class Validation:
    """What is measured of an initialisation, and when: the arguments of :func:`amaml_core.fit` of the same names.

    Raises:
        TypeError: what is of another kind.
        ValueError: no tasks, numbers < 1, or settings that do not go together.
    """

    validation: Any  # a list of Tasks
    validate_every: int = 100
    metric: Metric | None = None
    lower_is_better: bool = True
    patience: int | None = None

    def __post_init__(self) -> None:
        count(self, "validate_every")
        if not isinstance(self.lower_is_better, bool):
            raise TypeError(f"lower_is_better must be true or false, not {self.lower_is_better!r:.100}")
        if self.patience is not None:
            count(self, "patience")
        if self.metric is not None:
            check_metric(self.metric)
        if self.metric is None and not self.lower_is_better:
            raise ValueError("without a metric the query loss is measured, of which less is better; leave lower_is_better true")
        groups = [self.validation] if isinstance(self.validation, Tasks) else self.validation
        if groups is None:
            if self.metric is not None or self.patience is not None:
                raise ValueError("metric and patience need a validation; give fit tasks for it")
        elif not isinstance(groups, (list, tuple)) or not all(isinstance(group, Tasks) for group in groups):
            raise TypeError(f"validation must be Tasks or a list of Tasks, not {self.validation!r:.100}")
        elif not groups:
            raise ValueError("validation holds no tasks; leave it out, or give some")
        object.__setattr__(self, "validation", list(groups or ()))

    def __bool__(self) -> bool:
        """Whether there are tasks to measure on."""
        return bool(self.validation)

    def turn(self, number: int) -> bool:
        """Whether it is to be measured after this meta step, be it the last or not."""
        return bool(self) and number % self.validate_every == 0

    @property
    def worst(self) -> float:
        """What nothing is worse than."""
        return math.inf if self.lower_is_better else -math.inf

    def better(self, value: float, than: float) -> bool:
        """Whether a value is better than another one."""
        return value < than if self.lower_is_better else value > than

    def try_out(self, method: Method, problem: Problem, outer: OuterLoop, kept: bool) -> None:
        """See that all fits, and what the metric gives without adaptation, before any work is done; ``kept`` in a checkpoint.

        Raises:
            TypeError, ValueError: as :func:`amaml_core.meta_gradient` and :func:`amaml_core.evaluate`; data that leave nothing
                finite to measure; a scheduler that follows the validation where there is none, or in the wrong direction; or a
                metric that draws from a generator that no checkpoint holds, and there is one.
        """
        if (plateau := outer.plateau) is not None:
            if not self:
                raise ValueError("ReduceLROnPlateau follows the validation; give fit tasks for it")
            if (plateau.mode == "min") != self.lower_is_better:
                raise ValueError(f"ReduceLROnPlateau(mode={plateau.mode!r}) goes against lower_is_better={self.lower_is_better}")
        for tasks in self.validation:
            checked(method, problem, outer.theta, tasks, outer.phi)
            if (reason := not_finite(outer.theta, tasks, outer.phi)) and not self._finite(method, problem, outer, tasks):
                raise ValueError(f"validation cannot be measured: {reason}")
        if self.metric is not None:
            start = [outer.theta.expand(len(tasks), -1) for tasks in self.validation]  # (P,) -> (B, P)
            remedy = "seed a generator in it, keep nothing from call to call, or leave out the checkpoint"
            with standing_still("the metric", remedy) if kept else nullcontext():
                found = [describe(self._errors(problem, start, self.validation)) for _ in range(1 + kept)]
            if found[0] != found[-1]:
                raise ValueError(stateful("the metric", "what it gives for the same", remedy))

    def measure(self, method: Method, problem: Problem, outer: OuterLoop, ranks: Ranks) -> float:
        """The mean over tasks after the method's own adaptation; the worst there is if a task leaves the finite numbers."""
        groups = ranks.part(self.validation)
        total = torch.zeros(2, dtype=torch.float64)  # of the errors, and the number of tasks
        if groups:
            try:
                errors = self._measured(method, problem, outer, groups)
                total = torch.stack([errors.double().sum().cpu(), torch.tensor(len(errors)).double()])
            except DivergenceError:
                total.fill_(torch.nan)
        error, count = ranks.sum(total).tolist()
        return error / count if math.isfinite(error) else self.worst

    def _finite(self, method: Method, problem: Problem, outer: OuterLoop, tasks: Tasks) -> bool:
        """Whether there is something to measure of these tasks, as where a loss masks what is missing in them."""
        try:
            return bool(self._measured(method, problem, outer, [tasks]).isfinite().all())
        except DivergenceError:
            return False

    def _measured(self, method: Method, problem: Problem, outer: OuterLoop, groups: Sequence[Tasks]) -> Tensor:
        """The errors (B,) of all tasks after the method's own adaptation."""
        estimate = meta_gradient(ForwardOnly(method), problem, outer.theta, groups, outer.phi)
        adapted = estimate.adapted.split([len(tasks) for tasks in groups])
        return estimate.query_loss if self.metric is None else self._errors(problem, adapted, groups)

    def _errors(self, problem: Problem, adapted: Sequence[Tensor], groups: Sequence[Tasks]) -> Tensor:
        """The errors (B,) on the query sets of all tasks, for the parameters (B, P) of each of their groups."""
        assert self.metric is not None
        with torch.no_grad():
            pairs = zip(adapted, groups, strict=True)
            return torch.cat(
                [errors_of(self.metric, problem.predict(u, tasks.query[0]), tasks.query[1], len(u)) for u, tasks in pairs]
            )


@dataclass(frozen=True)
class ForwardOnly:
    """A method's adaptation, without its way back."""

    method: Any

    def __call__(self, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> tuple[Tensor, Pullback]:
        """Adapted parameters (B, P), and a pullback that gives back what it gets."""
        if phi is None:
            return self.method(problem, theta, tasks)[0], Pullback(lambda gradient: (gradient, Diagnostics()))
        nothing = Diagnostics(phi_gradient=theta.new_zeros(len(tasks), len(phi)))
        return self.method(problem, theta, tasks, phi=phi)[0], Pullback(lambda gradient: (gradient, nothing))

    def inner_step(self, *given: Any) -> Callable[[Tensor], Tensor]:
        """The method's own."""
        return self.method.inner_step(*given)

    @property
    def step_sizes(self) -> Any:
        """The method's own, through which phi may enter."""
        return getattr(self.method, "step_sizes", None)


class Best:
    """The best parameters that a validation has seen, and for how many validations there has been no better.

    Attributes:
        step: the meta step they were found after; ``None`` as long as no validation was finite.
        parameters: copies of all that is trained.
        waited: validations since then.
    """

    def __init__(self, validation: Validation) -> None:
        self.validation, self.value = validation, validation.worst
        self.step: int | None = None
        self.parameters: list[Tensor] = []
        self.waited = 0

    def take(self, step: int, value: float, parameters: list[Tensor]) -> None:
        """Take a further validation into account."""
        if self.validation.better(value, self.value):
            self.step, self.value, self.parameters, self.waited = step, value, parameters, 0
        else:
            self.waited += 1

    @property
    def in_vain(self) -> bool:
        """Whether patience is at its end."""
        return self.validation.patience is not None and self.waited >= self.validation.patience

    def state(self) -> dict[str, Any]:
        """All that it knows."""
        return {"step": self.step, "value": self.value, "parameters": self.parameters, "waited": self.waited}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.step, self.value, self.parameters, self.waited = (state[key] for key in ("step", "value", "parameters", "waited"))
