"""Meta-gradients through long inner loops by adjoint methods: the code of the book *Adjoint Meta-Learning*."""

from .adjoint import Backsolve, Checkpoint, Store
from .evaluation import AdamAdaptation, adapt, evaluate
from .flow import RK4, DivergenceError, Dopri5, Euler, Heun
from .inner import InnerLoop
from .meta import Diagnostics, MetaGradient, Pullback, meta_gradient
from .methods import AMAML, FOMAML, IMAML, MAML, GradientDescent, HessianFree, Reptile
from .problem import Problem
from .tasks import Tasks
from .training import FitResult, fit

__all__ = [
    "AMAML",
    "FOMAML",
    "IMAML",
    "MAML",
    "RK4",
    "AdamAdaptation",
    "Backsolve",
    "Checkpoint",
    "Diagnostics",
    "DivergenceError",
    "Dopri5",
    "Euler",
    "FitResult",
    "GradientDescent",
    "HessianFree",
    "Heun",
    "InnerLoop",
    "MetaGradient",
    "Problem",
    "Pullback",
    "Reptile",
    "Store",
    "Tasks",
    "adapt",
    "evaluate",
    "fit",
    "meta_gradient",
]
