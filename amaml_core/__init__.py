"""Meta-gradients through long inner loops by adjoint methods: the code of the book *Adjoint Meta-Learning*."""

from . import metrics  # noqa: F401  (amaml_core.metrics.rmse without a further import)
from .adjoint import Backsolve, Checkpoint, Store
from .bridge import meta_loss
from .evaluation import AdamAdaptation, adapt, evaluate
from .flow import RK4, DivergenceError, Dopri5, Euler, Heun
from .initialisation import Initialisation, load_initialisation, save_initialisation
from .inner import InnerLoop
from .loop import MetaStep, StopTraining
from .meta import Diagnostics, MetaGradient, Pullback, meta_gradient
from .methods import AMAML, FOMAML, IMAML, MAML, GradientDescent, HessianFree, Reptile
from .optimizers import Adam, Momentum
from .problem import Problem
from .tasks import Tasks
from .training import FitResult, NotSaved, fit

__version__ = "0.1.0"

__all__ = [
    "AMAML",
    "FOMAML",
    "IMAML",
    "MAML",
    "NotSaved",
    "RK4",
    "Adam",
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
    "Initialisation",
    "InnerLoop",
    "MetaGradient",
    "MetaStep",
    "Momentum",
    "Problem",
    "Pullback",
    "Reptile",
    "StopTraining",
    "Store",
    "Tasks",
    "adapt",
    "evaluate",
    "fit",
    "load_initialisation",
    "meta_gradient",
    "meta_loss",
    "save_initialisation",
]
