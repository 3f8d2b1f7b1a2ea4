"""What a result depends on, in words: a flat dictionary of settings that can be compared entry by entry.

Settings, containers and numbers are spelled out. Tensors and arrays are digests of their values, functions of their bytecode with
what they close over and the global functions and values they name. So another loss or sampler of the same name is another one.
Attributes whose name starts with an underscore count as caches, and are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ALIEN = ("torch", "numpy", "scipy", "pandas", "builtins", "torchdiffeq", "torchvision")  # told apart by name alone
OWN = "amaml_core"  # has a version, so by name, and by what its functions close over


def describe(thing: Any, name: str = "", seen: dict[int, Any] | None = None) -> dict[str, str]:
    """``{"entry.subentry": "value"}`` for everything that ``thing`` consists of; what comes again is not spelled out again.

    >>> describe({"lr": 0.1, "steps": [1, 2]})
    {'': 'dict', 'lr': '0.1', 'steps': 'list of 2', 'steps.0': '1', 'steps.1': '2'}
    """
    if thing is None or isinstance(thing, (bool, int, float, complex, str, bytes, torch.dtype, torch.device)):
        return {name: repr(thing)}
    if isinstance(thing, np.generic):
        return {name: repr(thing.item())}
    if isinstance(thing, Tensor):
        return {name: f"{thing.dtype} {tuple(thing.shape)} {_digest(_bytes(thing))}"}
    if isinstance(thing, np.ndarray):
        return {name: f"{thing.dtype} {thing.shape} {_digest(np.ascontiguousarray(thing).view(np.uint8).data)}"}
    if isinstance(thing, torch.Generator):
        return {name: _digest(_bytes(thing.get_state()))}
    seen = {} if seen is None else seen
    if id(thing) in seen:
        return {name: "again"}
    seen[id(thing)] = thing  # which also keeps it alive, so that no other thing gets its id
    within = functools.partial(_within, name=name, seen=seen)
    if isinstance(thing, Mapping):
        return {name: type(thing).__name__} | within({str(key): value for key, value in thing.items()})
    if isinstance(thing, (list, tuple, set, frozenset)):
        listed = sorted(thing, key=repr) if isinstance(thing, (set, frozenset)) else thing
        return {name: f"{type(thing).__name__} of {len(thing)}"} | within({str(i): entry for i, entry in enumerate(listed)})
    if isinstance(thing, functools.partial):
        return within({"function": thing.func, "arguments": thing.args, "keywords": thing.keywords})
    if isinstance(thing, types.MethodType):
        return within({"method": thing.__func__, "of": thing.__self__})
    if isinstance(thing, types.FunctionType):
        return {name: f"{thing.__module__}.{thing.__qualname__}"} | within(_function(thing))
    if isinstance(thing, (types.BuiltinFunctionType, types.ModuleType)):
        return {name: thing.__name__}
    if isinstance(thing, type):
        return {name: f"{thing.__module__}.{thing.__qualname__}"} | within(_methods(thing))
    if isinstance(thing, nn.Module):
        return {name: re.sub(r"\s+", " ", repr(thing))} | within(_module(thing))
    if dataclasses.is_dataclass(thing):
        entries = {entry.name: getattr(thing, entry.name) for entry in dataclasses.fields(thing)}
    else:
        entries = {key: value for key, value in getattr(thing, "__dict__", {}).items() if not key.startswith("_")}
    return within({"class": type(thing)} | entries)


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Lines ``entry: one value there, another here`` for all entries that differ."""
    return [
        f"{key}: {there.get(key, 'nothing')} there, {here.get(key, 'nothing')} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]


def _within(entries: Mapping[str, Any], name: str, seen: dict[int, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in entries.items():
        found |= describe(value, f"{name}.{key}" if name else key, seen)
    return found


def _module(module: nn.Module) -> dict[str, Any]:
    """Beside its printed form: the shapes of its parameters and which are frozen, its buffers, modes, and classes of its own."""
    return {
        "parameters": {name: f"{tuple(p.shape)} {p.dtype} {p.requires_grad}" for name, p in module.named_parameters()},
        "buffers": dict(module.named_buffers()),
        "training": {name: part.training for name, part in module.named_modules()},
        "classes": {f"{type(part).__module__}.{type(part).__qualname__}": type(part) for part in module.modules()},
        "attributes": {
            f"{name}.{key}": value
            for name, part in module.named_modules()
            if _package(type(part)) not in ALIEN
            for key, value in vars(part).items()
            if not key.startswith("_") and not isinstance(value, (nn.Module, nn.Parameter))
        },
    }


def _function(function: types.FunctionType) -> dict[str, Any]:
    if _package(function) in ALIEN:
        return {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    given = {
        "defaults": function.__defaults__,
        "keywords": function.__kwdefaults__,
        "closure": {key: cell.cell_contents for key, cell in cells if cell != types.CellType()},
    }
    if _package(function) == OWN:
        return given
    named = {key: function.__globals__[key] for key in _names(function.__code__) if key in function.__globals__}
    kinds = (bool, int, float, str, tuple, Tensor, types.FunctionType, type, functools.partial)
    outside = {key: value for key, value in sorted(named.items()) if isinstance(value, kinds)}
    return given | {"code": _code(function.__code__), "globals": outside}


def _methods(kind: type) -> dict[str, Any]:
    if _package(kind) in (*ALIEN, OWN):
        return {}
    own = {key: value for key, value in vars(kind).items() if isinstance(value, types.FunctionType)}
    made = ("__eq__", "__hash__", "__repr__", "__replace__")  # by dataclasses, among others
    return {key: value for key, value in own.items() if key not in made} | {"bases": kind.__bases__}


def _names(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _code(code: types.CodeType) -> str:
    constants = [_code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return _digest(repr((code.co_code, constants, code.co_names, code.co_varnames)).encode())


def _package(thing: Any) -> str:
    return (thing.__module__ or "builtins").partition(".")[0]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
