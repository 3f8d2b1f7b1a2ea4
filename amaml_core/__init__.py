"""Meta-gradients through long inner loops by adjoint methods: the code of the book *Adjoint Meta-Learning*."""

from .adjoint import Store
from .evaluation import AdamAdaptation, evaluate
from .flow import RK4, Euler, Heun
from .meta import MetaGradient, meta_gradient
from .methods import AMAML, FOMAML, IMAML, MAML, GradientDescent, Reptile
from .problem import Problem
from .tasks import Tasks
from .training import DivergenceError, FitResult, fit

__all__ = [
    "AMAML",
    "FOMAML",
    "IMAML",
    "MAML",
    "RK4",
    "AdamAdaptation",
    "DivergenceError",
    "Euler",
    "FitResult",
    "GradientDescent",
    "Heun",
    "MetaGradient",
    "Problem",
    "Reptile",
    "Store",
    "Tasks",
    "evaluate",
    "fit",
    "meta_gradient",
]
