"""What the outer loop moves, and by what: theta, phi and an entry of the method; one optimiser, and the scheduler of its rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils._pytree import tree_leaves, tree_map

from . import checkpoints
from .flow import DivergenceError
from .identity import describe, standing_still, stateful
from .learned import Learned
from .meta import MetaGradient, Method
from .problem import Problem
from .settings import positive

MakeOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], LRScheduler]


class OuterLoop:
    """The parameters of meta-training and what moves them, a step at a time.

    Args:
        problem: whose frozen parameters stay as they are.
        theta: where to start (P,); the model's own parameters if it is ``None``.
        phi: where to start (M,), or ``None``.
        learned: what of the method is learned, or ``None``.
        optimizer, scheduler: make both; they are tried out on copies first.
        clip_norm: the largest norm of a meta-gradient, theta and phi together; ``None`` for any.
        kept: whether the state must be one that a checkpoint can hold.

    Raises:
        TypeError: theta or phi are no floating-point tensors, the optimiser cannot step on one gradient, the scheduler is none, or
            the state cannot be kept.
        ValueError: theta or phi of another shape or device, ``clip_norm`` is not positive, or the optimiser moves other tensors
            than those it is given.
    """

    def __init__(
        self,
        problem: Problem,
        theta: Tensor | None,
        phi: Tensor | None,
        learned: Learned | None,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None,
        clip_norm: float | None,
        kept: bool,
    ) -> None:
        self.clip_norm = clip_norm
        if clip_norm is not None:
            positive(self, "clip_norm")
        self._theta, self._phi = _start(problem, theta, phi)
        self.learned = learned
        self._problem = problem
        trained = (self._theta, self._phi, None if learned is None else learned.logarithm)
        self.parameters = [p.requires_grad_() for p in trained if p is not None]
        _try_out(optimizer, scheduler, self.parameters, kept)
        self.optimizer = _made(optimizer, self.parameters)
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)

    @property
    def theta(self) -> Tensor:
        """The parameters (P,) as they are now, which the next step changes."""
        return self._theta.detach()

    @property
    def phi(self) -> Tensor | None:
        """The meta-parameters (M,) as they are now, which the next step changes."""
        return None if self._phi is None else self._phi.detach()

    @property
    def plateau(self) -> ReduceLROnPlateau | None:
        """The scheduler, if it is one that follows the validation."""
        return self.scheduler if isinstance(self.scheduler, ReduceLROnPlateau) else None

    @property
    def lr(self) -> float:
        """The learning rate of the optimiser's first group."""
        return float(self.optimizer.param_groups[0].get("lr", torch.nan))

    def gradients(self, each: MetaGradient) -> list[Tensor]:
        """Of all that is trained, with a row (B, n) for each task."""
        own = [] if self.learned is None else [each.stats[self.learned.gradient]]
        parts = [each.gradient, *([] if each.phi_gradient is None else [each.phi_gradient]), *own]
        return [part.reshape(len(part), -1) for part in parts]

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """The norm of theta's and phi's gradients together; in double precision, where its square does not overflow."""
        return torch.cat([part.double() for part in gradients[: 1 if self._phi is None else 2]]).norm().item()

    def update(self, gradients: Sequence[Tensor]) -> None:
        """One step along the mean gradients (n,) of all that is trained, and one of the scheduler.

        Raises:
            DivergenceError: the step leaves the finite numbers.
        """
        norm = self.norm(gradients)
        shrink = 1.0 if self.clip_norm is None or norm <= self.clip_norm else self.clip_norm / norm
        for parameter, gradient in zip((self._theta, self._phi), gradients, strict=False):
            if parameter is not None:
                parameter.grad = gradient * shrink
        if self.learned is not None:
            self.learned.take(gradients[-1])
        free = self._problem.free()
        before = self.theta if free is None else self.theta.clone()
        self.optimizer.step()
        if free is not None:  # some optimisers move what has no gradient: weight decay and momentum do
            self._theta.data = torch.where(free, self._theta.data, before)
        learned = [] if self.learned is None else [self.learned.logarithm.exp()]
        if not all(value.isfinite().all() for value in (*self.parameters, *learned)) or not all(value.all() for value in learned):
            raise DivergenceError(
                f"{type(self.optimizer).__name__} at the learning rate {self.lr:g} leads to numbers that are not finite, or to a "
                "horizon or step size of 0; lower the rate, or compute in a higher precision"
            )
        if self.scheduler is not None and self.plateau is None:
            self.scheduler.step()

    def validated(self, value: float) -> None:
        """The step of a scheduler that follows the validation."""
        if self.plateau is not None:
            self.plateau.step(value)

    def copies(self) -> list[Tensor]:
        """All that is trained, as it is now."""
        return [p.detach().clone() for p in self.parameters]

    def method(self, start: Method) -> Method:
        """The method with what has been learned of it so far."""
        return start if self.learned is None else self.learned.method()

    def unpack(self, copies: list[Tensor], method: Method) -> tuple[Tensor, Tensor | None, Method]:
        """Theta, phi and the method of such a list; ``method`` where nothing of it is learned."""
        left = iter([copy.to(p.device) for copy, p in zip(copies, self.parameters, strict=True)])
        theta, phi = next(left), None if self._phi is None else next(left)
        return theta, phi, method if self.learned is None else self.learned.method(next(left))

    def state(self) -> dict[str, Any]:
        """All that the next steps depend on, the settings aside."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"parameters": self.copies(), "optimizer": self.optimizer.state_dict(), "scheduler": scheduler}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state, to the bit."""
        for p, kept in zip(self.parameters, state["parameters"], strict=True):
            p.data.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])  # which casts some of it to the dtype of the parameters
        parameters = dict(enumerate(p for group in self.optimizer.param_groups for p in group["params"]))
        back = lambda kept, own: kept.to(own.device) if isinstance(kept, Tensor) else own  # noqa: E731
        for number, entries in state["optimizer"]["state"].items():
            if number in parameters:  # others are loaded as they are
                own = self.optimizer.state[parameters[number]]
                own.update(tree_map(back, entries, dict(own)))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])

    def description(self) -> dict[str, Any]:
        """What the identity of a run depends on: where it starts, and the optimiser with the settings and entries of its groups."""
        places = {id(p): place for place, p in enumerate(self.parameters)}
        groups = [
            {key: [places[id(p)] for p in value] if key == "params" else value for key, value in group.items()}
            for group in self.optimizer.param_groups
        ]
        return {
            "theta": self._theta, "phi": self._phi, "clip_norm": self.clip_norm,
            "optimizer": {"class": type(self.optimizer), "settings": groups},
        }  # fmt: skip

    def attributes(self) -> dict[str, Any]:
        """What the optimiser keeps beside its groups and its state."""
        return _attributes(self.optimizer)


def _attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    beside = ("state", "defaults", "param_groups", "step")  # the last is what a scheduler wraps
    own = {key: value for key, value in vars(optimizer).items() if not key.startswith("_") and key not in beside}
    hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    return own | ({"hooks": hooks} if hooks else {})


def _notes(optimizer: torch.optim.Optimizer, schedules: Sequence[Any]) -> dict[str, str]:
    """What an optimiser and the functions of schedulers keep where their state dicts do not look, in words."""
    own = _attributes(optimizer) if type(optimizer).state_dict is torch.optim.Optimizer.state_dict else {}
    leaves = [leaf for schedule in schedules for leaf in tree_leaves({**vars(schedule), "optimizer": None})]
    return describe({"optimizer": own, "scheduler": [leaf for leaf in leaves if isinstance(leaf, FunctionType)]})


def _start(problem: Problem, theta: Tensor | None, phi: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Copies of what to start from."""
    for name, given in (("theta", theta), ("phi", phi)):
        if given is not None and not (isinstance(given, Tensor) and given.is_floating_point()):
            raise TypeError(f"{name} must be a floating-point tensor, not {given!r:.100}")
    theta = problem.initial_parameters() if theta is None else theta.detach().clone()
    if theta.shape != (problem.size,):
        raise ValueError(f"theta has shape {tuple(theta.shape)}, but the model has P={problem.size} parameters: it must be (P,)")
    if phi is None:
        return theta, None
    if phi.ndim != 1 or not len(phi) or not phi.isfinite().all():
        raise ValueError(f"phi must be (M,), finite and not empty, not {tuple(phi.shape)}: {phi!r:.100}")
    if (phi.dtype, phi.device) != (theta.dtype, theta.device):
        raise ValueError(f"phi is {phi.dtype} on {phi.device} but theta is {theta.dtype} on {theta.device}; use phi.to(theta)")
    return theta, phi.detach().clone()


def _try_out(optimizer: MakeOptimizer, scheduler: MakeScheduler | None, parameters: list[Tensor], kept: bool) -> None:
    """One step of the optimiser and of the scheduler on copies, before any work is done.

    Raises:
        TypeError: the optimiser needs more than a gradient, either is none, or its state cannot be saved.
        ValueError: as :func:`_made`; or the step draws from a generator that no checkpoint holds, and there is one.
    """
    copies = [p.detach().clone().requires_grad_() for p in parameters]
    trial = _made(optimizer, copies)
    parts: list[Any] = [trial]
    if scheduler is not None:
        parts.append(scheduler(trial))
        _instance("scheduler", parts[1], LRScheduler)
    for p in copies:
        p.grad = torch.zeros_like(p)
    remedy = "draw from a generator that is seeded by the number of the step, or leave out the checkpoint"
    before = _notes(trial, parts[1:]) if kept else {}
    with standing_still("the optimiser or its scheduler", remedy) if kept else nullcontext():
        try:
            trial.step()
        except (TypeError, RuntimeError, AssertionError) as error:
            raise TypeError(
                f"{type(trial).__name__} cannot be used here: fit gives an optimiser one gradient, and calls step() ({error})"
            ) from error
        for schedule in parts[1:]:
            schedule.step(*([0.0] if isinstance(schedule, ReduceLROnPlateau) else []))
    if moved := [key for key, value in _notes(trial, parts[1:]).items() if before.get(key) != value] if kept else []:
        raise ValueError(stateful("the optimiser or its scheduler", moved[0], "keep it in the optimiser's state"))
    for part in parts if kept else []:
        checkpoints.flatten(part.state_dict(), {}, type(part).__name__)


def _made(optimizer: MakeOptimizer, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The optimiser of these parameters, with copies of what it was given as tensors, to which schedulers write.

    Raises:
        TypeError: it is none.
        ValueError: it moves others, such as the model's own, or not all of them.
    """
    made = optimizer(parameters)
    _instance("optimizer", made, torch.optim.Optimizer)
    held = {id(p) for group in made.param_groups for p in group["params"]}
    given = {id(p) for p in parameters}
    if held != given:
        what = "moves tensors that are not among" if held - given else "leaves out some of"
        raise ValueError(
            f"the optimiser, {type(made).__name__}, {what} those it is given, theta the first of them; build it on these, as in "
            "optimizer=lambda p: torch.optim.SGD(p, lr=0.01), and give lr=0 to what is not to move"
        )
    for group in made.param_groups:
        group.update({key: value.detach().clone() for key, value in group.items() if isinstance(value, Tensor)})
    return made


def _instance(name: str, thing: Any, kind: type) -> None:
    if not isinstance(thing, kind):
        raise TypeError(f"{name} must be a function that gives a torch {kind.__name__}, not {type(thing).__name__}")
