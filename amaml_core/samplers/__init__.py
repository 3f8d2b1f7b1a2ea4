"""Samplers of tasks: ``sampler(generator) -> Tasks``."""

from .functions import (
    Alpine,
    CosMixture,
    FunctionPools,
    FunctionSampler,
    Standardisation,
    make_function_pools,
    make_function_tasks,
)
from .images import ClassSplit, ImageSampler, split_alphabets, split_classes
from .pools import PoolSampler
from .ratings import RatingSampler, RatingSplits, split_users

__all__ = [
    "Alpine",
    "ClassSplit",
    "CosMixture",
    "FunctionPools",
    "FunctionSampler",
    "ImageSampler",
    "PoolSampler",
    "RatingSampler",
    "RatingSplits",
    "Standardisation",
    "make_function_pools",
    "make_function_tasks",
    "split_alphabets",
    "split_classes",
    "split_users",
]
