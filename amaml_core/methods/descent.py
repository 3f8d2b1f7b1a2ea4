"""Steps of an optimiser on the support loss, the inner loop that MAML, FOMAML and Reptile share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..chain import Chain, chain, repeat
from ..flow import Euler, FixedStep
from ..inner import InnerLoop
from ..kernel import Kernel
from ..meta import Diagnostics
from ..problem import Problem
from ..settings import count, instance, positive
from ..tasks import Tasks

STEPS = 5  # by default


@dataclass(frozen=True)
class Descent:
    """``steps`` (K) steps on the support loss with learning rate ``lr``: settings shared by three methods.

    Args:
        lr: inner learning rate.
        steps: inner steps K.
        inner: minibatches, weight decay, frozen parameters, clipping.
        solver: how a step is taken, for example ``Adam(steps=5)``, whose number of steps counts; gradient descent by default.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``lr`` is not positive, ``steps`` < 1, or not the solver's.
    """

    lr: float = 0.01
    steps: int = STEPS
    inner: InnerLoop = field(default=InnerLoop(), kw_only=True)
    solver: FixedStep | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        positive(self, "lr")
        count(self, "steps")
        instance(self, "inner", (InnerLoop,))
        if self.solver is not None:
            instance(self, "solver", (FixedStep,))
            if self.steps not in (STEPS, self.solver.steps):
                raise ValueError(f"steps={self.steps} are not the solver's {self.solver.steps}; leave one of them out")
            object.__setattr__(self, "steps", self.solver.steps)

    def inner_step(self, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None) -> Callable[[Tensor], Tensor]:
        """The inner loop, step by step: ``u (B, P) -> u (B, P)``, without a graph. Momenta live in the returned function.

        >>> import torch
        >>> from amaml_core import MAML
        >>> problem = Problem(torch.nn.Linear(1, 1, bias=False), torch.nn.functional.mse_loss)
        >>> theta, tasks = torch.tensor([2.0]), Tasks(*torch.ones(4, 1, 3, 1))  # the loss is (2 - 1)², its gradient 2
        >>> MAML(lr=0.1, steps=5).inner_step(problem, theta, tasks)(theta[None])
        tensor([[1.8000]])
        """
        return repeat(lambda steps: self.chain(problem, theta, tasks, phi, steps), self.steps)

    def chain(self, problem: Problem, theta: Tensor, tasks: Tasks, phi: Tensor | None = None, steps: int | None = None) -> Chain:
        """``steps`` steps from ``theta (P,)``, or the method's own number."""
        steps = steps or self.steps
        kernel = Kernel(problem, (self.solver or Euler(1)).rule, self.inner)
        return chain(kernel, theta, tasks, self.lr, steps, self.inner.schedule(steps, tasks), phi)

    def diagnostics(self) -> Diagnostics:
        """What the inner loop costs."""
        evaluations = 1 if self.solver is None else self.solver.rule.evaluations
        return Diagnostics(steps=self.steps, gradient_evaluations=self.steps * evaluations)
