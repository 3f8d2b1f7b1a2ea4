"""Twins of a model: the same tree of modules with other tensors in it.

A call of the model with parameters ``u`` builds a twin that holds them and shares all else. So whatever a forward pass leaves
behind is gone with the twin, the user's model stays as it is, and threads do not meet.
"""

from __future__ import annotations

import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.utils._pytree import tree_map

# What every module has: dictionaries of hooks, most of them empty. And what neither is a tensor nor holds one.
SHARED = set(vars(nn.Module())) - {"_parameters", "_buffers", "_modules"}
CONTAINERS = (OrderedDict, defaultdict, dict, list, deque, set)
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
        own.pop("_compiled_call_impl", None)  # of module.compile(), which holds on to the original
        for name, value in own.items():
            if type(value) not in PLAIN and not (name in SHARED and not value):
                own[name] = _replace(value, held)
    return blank[id(model)]


def _replace(value: Any, held: dict[int, Any]) -> Any:
    """What stands for an attribute of a module in its twin: containers are copied, each once, also in each other."""
    if id(value) in held:
        return held[id(value)]
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _replace(value.__self__, held))
    if type(value) is tuple or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return tuple.__new__(type(value), [_replace(entry, held) for entry in value])
    base = next((kind for kind in CONTAINERS if isinstance(value, kind)), None)
    return value if base is None else _copied(value, base, held)


def _copied(value: Any, base: Any, held: dict[int, Any]) -> Any:
    """A container of the same kind, filled by the methods of its base: those of its own may convert, count or refuse."""
    held[id(value)] = new = base.__new__(type(value))  # before its entries, one of which it may be
    if isinstance(value, dict):
        if isinstance(value, defaultdict):
            base.__init__(new, value.default_factory)
        for key, entry in base.items(value):
            base.__setitem__(new, key, _replace(entry, held))
    elif base is set:
        base.update(new, base.__iter__(value))
    else:
        if base is deque:
            base.__init__(new, (), value.maxlen)
        base.extend(new, [_replace(entry, held) for entry in base.__iter__(value)])
    if type(value) is not base and type(value).__dictoffset__:
        own, copy = (object.__getattribute__(thing, "__dict__") for thing in (value, new))
        if own is value:  # entries that are attributes, too
            object.__setattr__(new, "__dict__", new)
        else:
            copy.update({name: _replace(entry, held) for name, entry in own.items()})
    return new


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
