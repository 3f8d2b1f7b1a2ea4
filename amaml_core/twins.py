"""Twins of a model: the same tree of modules with other tensors in it.

A call of the model with parameters ``u`` builds a twin that holds them and shares all else. So whatever a forward pass leaves
behind is gone with the twin, the user's model stays as it is, and threads do not meet.
"""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.utils._pytree import tree_map

# What every module has: dictionaries of hooks, most of them empty. And what neither is a tensor nor holds one.
SHARED = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}
PLAIN = {bool, int, float, str, type(None)}


def twin(model: nn.Module, held: dict[int, Any] | None = None) -> nn.Module:
    """A copy of the model's tree of modules. What ``held`` names by its id is replaced wherever a module holds it: as a parameter,
    a buffer, an attribute, in a list or a dictionary. All else is shared.

    >>> model = nn.Linear(2, 1)
    >>> other = twin(model, {id(model.bias): None})
    >>> other.bias is None, other.weight is model.weight, model.bias is None
    (True, True, False)
    """
    modules = list(model.modules())
    blank = {id(module): object.__new__(type(module)) for module in modules}
    held = (held or {}) | blank
    for module in modules:
        own = vars(blank[id(module)])
        own.update(vars(module))
        for name, value in own.items():
            if type(value) not in PLAIN and not (name in SHARED and not value):
                own[name] = _replace(value, held)
    return blank[id(model)]


def _replace(value: Any, held: dict[int, Any]) -> Any:
    """What stands for an attribute of a module in its twin: containers are copied, also in each other."""
    if id(value) in held:
        return held[id(value)]
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _replace(value.__self__, held))
    if type(value) is tuple:
        return tuple([_replace(entry, held) for entry in value])
    if isinstance(value, dict):
        copy = value.copy()  # which keeps the kind of dictionary
        copy.update({key: _replace(entry, held) for key, entry in value.items()})
        return copy
    if isinstance(value, (list, deque)):
        entries = value.copy()
        entries.clear()
        entries.extend([_replace(entry, held) for entry in value])
        return entries
    return value.copy() if isinstance(value, set) else value


def call(model: nn.Module, x: Any) -> Any:
    """The model at one tensor, or at the tensors of a tuple or a dictionary."""
    return model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)


def part(given: Any, start: int, stop: int) -> Any:
    """Some of the tasks of tensors (B, ...), or of tuples and dictionaries of them."""
    return tree_map(lambda tensor: tensor[start:stop], given)


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """What ``named_parameters()`` lists, in its order, each once; several times as fast."""
    return list({id(p): p for module in modules for p in vars(module)["_parameters"].values() if p is not None}.values())


def settings_of(module: nn.Module) -> tuple:
    """The kind of a module, its plain attributes, and how many entries its dictionaries have, hooks among them."""
    values = [v if type(v) in PLAIN else len(v) for v in vars(module).values() if type(v) in PLAIN or isinstance(v, dict)]
    return type(module), *values
