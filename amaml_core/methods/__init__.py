"""The five methods. Each maps ``(problem, theta, tasks)`` to the adapted parameters and their pullback to theta."""

from .amaml import AMAML
from .fomaml import FOMAML
from .imaml import IMAML, GradientDescent, HessianFree
from .maml import MAML
from .reptile import Reptile

__all__ = ["AMAML", "FOMAML", "IMAML", "MAML", "GradientDescent", "HessianFree", "Reptile"]
