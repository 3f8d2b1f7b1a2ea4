"""What a result depends on, in words: a flat dictionary of settings that can be compared entry by entry.

Settings, containers and numbers are spelled out. Tensors and arrays are digests of their values, functions of their bytecode with
what they close over and the global functions and values they name. So another loss or sampler of the same name is another one.
Attributes whose name starts with an underscore count as caches, and are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pickle
import random
import re
import sys
import types
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ALIEN = ("torch", "numpy", "scipy", "pandas", "builtins", "torchdiffeq", "torchvision")  # told apart by name alone
OWN = "amaml_core"  # has a version, so by name, and by what its functions close over
PRIMITIVE = (type(None), bool, int, float, complex, str, bytes)
HOOKS = {key for key, value in vars(nn.Module()).items() if isinstance(value, dict) and "hook" in key}
LISTED = (list, tuple, set, frozenset, deque)
LONG = 50  # a longer list of numbers is a digest


def describe(thing: Any, name: str = "", seen: dict[int, Any] | None = None, free: Collection[int] = frozenset()) -> dict[str, str]:
    """``{"entry.subentry": "value"}`` for everything that ``thing`` consists of; functions and classes are spelled out once.

    Args:
        thing: whatever can be described.
        name: of its entry.
        seen: what has been spelled out already.
        free: by ``id``, parameters of any values, such as those of a model that is run with others. They must stay alive.

    Raises:
        TypeError: it has neither settings that can be seen nor a pickle that could be compared.

    >>> describe({"lr": 0.1, "steps": [1, 2]})
    {'': 'dict', 'lr': '0.1', 'steps': 'list of 2', 'steps.0': '1', 'steps.1': '2'}
    """
    if isinstance(thing, (*PRIMITIVE, torch.dtype, torch.device)):
        return {name: repr(thing)}
    if isinstance(thing, nn.Parameter) and id(thing) in free:
        return {name: repr(f"{tuple(thing.shape)} {thing.dtype} {thing.requires_grad}")}
    if isinstance(thing, np.generic):
        return {name: repr(thing.item())}
    if isinstance(thing, Tensor):
        flat = thing.detach().to_dense()
        return {name: f"{thing.dtype} {tuple(thing.shape)} {_digest(_bytes(flat))}"}
    if isinstance(thing, np.ndarray) and not thing.dtype.hasobject:
        return {name: f"{thing.dtype} {thing.shape} {_digest(np.ascontiguousarray(thing).view(np.uint8).data)}"}
    if isinstance(thing, torch.Generator):
        return {name: _digest(_bytes(thing.get_state()))}
    seen = {} if seen is None else seen
    if id(thing) in seen:
        return {name: "again"}
    seen[id(thing)] = thing  # which also keeps it alive, so that no other thing gets its id
    try:
        return _compound(thing, name, functools.partial(_within, name=name, seen=seen, free=free))
    finally:
        if not isinstance(thing, (types.FunctionType, type)):
            del seen[id(thing)]  # data are spelled out wherever they come, so that it does not matter who shares them


def _compound(thing: Any, name: str, within: Callable[[Mapping[str, Any]], dict[str, str]]) -> dict[str, str]:
    if isinstance(thing, (Mapping, *LISTED)):
        beside = _attributes(thing)
        return _listed(thing, name, within) | (within({"attributes": beside}) if beside else {})
    if isinstance(thing, functools.partial):
        return within({"function": thing.func, "arguments": thing.args, "keywords": thing.keywords})
    if isinstance(thing, types.MethodType):
        return within({"method": thing.__func__, "of": thing.__self__})
    if isinstance(thing, types.FunctionType):
        return {name: f"{thing.__module__}.{thing.__qualname__}"} | within(_function(thing))
    if isinstance(thing, functools._lru_cache_wrapper):
        return within({"cached": thing.__wrapped__})
    if isinstance(thing, (types.BuiltinFunctionType, types.ModuleType, np.ufunc)):
        return {name: thing.__name__}
    if isinstance(thing, type):
        return {name: f"{thing.__module__}.{thing.__qualname__}"} | within(_class(thing))
    if isinstance(thing, nn.Module):
        shown = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))  # of a function or an object that a part names
        return {name: re.sub(r"\s+", " ", shown)} | within(_module(thing))
    if isinstance(thing, Enum):
        return {name: str(thing)} | within({"class": type(thing)})
    if dataclasses.is_dataclass(thing):
        given = {entry.name: getattr(thing, entry.name) for entry in dataclasses.fields(thing)}
        return within({"class": type(thing)} | given | _attributes(thing))
    if hasattr(thing, "__dict__") and _package(type(thing)) not in ALIEN:
        return within({"class": type(thing)} | _attributes(thing))
    try:
        return {name: f"{type(thing).__qualname__} {_digest(pickle.dumps(thing))}"}
    except Exception as error:
        raise TypeError(
            f"nothing tells whether {name}, a {type(thing).__qualname__}, is the same in another run ({error}); leave out the "
            "checkpoint, or keep its settings in a dataclass"
        ) from None


def _listed(thing: Any, name: str, within: Callable[[Mapping[str, Any]], dict[str, str]]) -> dict[str, str]:
    if isinstance(thing, Mapping):
        keys = [key if isinstance(key, str) else f"({key!r})" if isinstance(key, PRIMITIVE) else "" for key in thing]
        if all(keys):
            return {name: type(thing).__name__} | within(dict(zip(keys, thing.values(), strict=True)))
        return {name: type(thing).__name__} | within({str(i): pair for i, pair in enumerate(thing.items())})
    listed = sorted(thing, key=repr) if isinstance(thing, (set, frozenset)) else list(thing)
    kind = f"{type(thing).__name__} of {len(listed)}"
    if len(listed) > LONG and all(isinstance(entry, PRIMITIVE) for entry in listed):
        return {name: f"{kind} {_digest(repr(listed).encode())}"}
    return {name: kind} | within({str(i): entry for i, entry in enumerate(listed)})


def _attributes(thing: Any) -> dict[str, Any]:
    """What an object keeps, beside its entries if it has some: attributes, slots, and what only it can tell of its state."""
    found = dict(getattr(thing, "__dict__", {}))
    reduced: tuple[Any, ...] | str
    try:
        reduced = thing.__reduce_ex__(4)  # as for a pickle, which nobody makes
    except Exception:  # such as one that is bound to this process
        reduced = ""
    _, arguments, state = (*reduced, None)[:3] if isinstance(reduced, tuple) else (None, (), None)
    for part in state if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict) else (state,):
        found = {**part, **found} if isinstance(part, dict) else found if part is None else {**found, "(state)": part}
    made_of = [] if isinstance(thing, (tuple, set, frozenset)) else [a for a in arguments if a is not type(thing)]  # those: entries
    kept = lambda key: not isinstance(getattr(type(thing), key, None), functools.cached_property)  # noqa: E731
    found = {key: value for key, value in found.items() if isinstance(key, str) and not key.startswith("_") and kept(key)}
    return found | ({"(arguments)": made_of} if made_of else {})


@contextmanager
def standing_still(what: str, remedy: str) -> Iterator[None]:
    """Within it the generators that all of a process shares must not move on, as no checkpoint holds them.

    Raises:
        ValueError: one does.
    """
    before = _shared_generators()
    yield
    after = _shared_generators()  # of one more, perhaps: that of a GPU that has just been used for the first time
    if moved := [name for name in before if after[name] != before[name]]:
        raise ValueError(stateful(what, moved[0], f"{remedy}, and let no other thread draw meanwhile"))


def stateful(what: str, moved: str, remedy: str) -> str:
    """The message on something whose state is not part of a run's."""
    return f"{what} has a state that a checkpoint does not hold ({moved} moved on); {remedy}"


def _shared_generators() -> dict[str, dict[str, str]]:
    states = {"PyTorch's": torch.get_rng_state(), "Python's": random.getstate(), "NumPy's": np.random.get_state()}  # noqa: NPY002
    if torch.cuda.is_initialized():
        states |= {f"PyTorch's (cuda:{i})": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return {f"{name} own generator": describe(state) for name, state in states.items()}


def differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Lines ``entry: one value there, another here`` for all entries that differ."""
    keys = sorted(there.keys() | here.keys(), key=lambda key: (key not in there or key not in here, key))  # the telling ones first
    return [
        f"{key}: {there.get(key, 'nothing')} there, {here.get(key, 'nothing')} here"
        for key in keys
        if there.get(key) != here.get(key)
    ]


def _within(entries: Mapping[str, Any], name: str, seen: dict[int, Any], free: Collection[int]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in entries.items():
        found |= describe(value, f"{name}.{key}" if name else key, seen, free)
    return found


def _module(module: nn.Module) -> dict[str, Any]:
    """Beside its printed form: parameters, buffers, hooks, and each part's settings and class."""
    return {
        "parameters": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
        "hooks": {
            f"{name}.{key}": list(value.values())
            for name, part in module.named_modules()
            for key, value in vars(part).items()
            if key in HOOKS and value
        },
        "attributes": {
            f"{name}.{key}": value
            for name, part in module.named_modules()
            for key, value in vars(part).items()
            if not key.startswith("_") and not isinstance(value, (nn.Module, nn.Parameter))
        },
        "classes": {f"{type(part).__module__}.{type(part).__qualname__}": type(part) for part in module.modules()},
    }


def _function(function: types.FunctionType) -> dict[str, Any]:
    if _package(function) in ALIEN:
        return {}
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    given = {
        "defaults": function.__defaults__,
        "keywords": function.__kwdefaults__,
        "attributes": vars(function),
        "closure": {key: cell.cell_contents for key, cell in cells if cell != types.CellType()},
    }
    if _package(function) == OWN:
        return given
    names, outside = _names(function.__code__), {}
    for key in sorted(names & function.__globals__.keys()):
        value = function.__globals__[key]
        outside[key] = value
        if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in (*ALIEN, OWN, *sys.stdlib_module_names):
            outside |= {f"{key}.{used}": vars(value)[used] for used in sorted(names & vars(value).keys())}
    return given | {"code": _code(function.__code__), "globals": outside}


def _class(kind: type) -> dict[str, Any]:
    if _package(kind) in (*ALIEN, OWN, *sys.stdlib_module_names):
        return {}
    made = ("__eq__", "__hash__", "__repr__", "__replace__", "__match_args__", "__doc__", "__module__", "__dict__", "__weakref__")
    skipped = (types.GetSetDescriptorType, types.MemberDescriptorType)
    found: dict[str, Any] = {"bases": kind.__bases__}
    for key, value in vars(kind).items():
        if key in made or key.startswith(("__dataclass", "__annotat", "__abstract", "_abc", "__static", "__firstline")):
            continue
        if isinstance(value, property):
            found[key] = [value.fget, value.fset]
        elif isinstance(value, (staticmethod, classmethod)):
            found[key] = value.__func__
        elif not isinstance(value, skipped) and (not key.startswith("_") or isinstance(value, types.FunctionType)):
            found[key] = value
    return found


def _names(code: types.CodeType) -> set[str]:
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _code(code: types.CodeType) -> str:
    return _digest(repr((code.co_code, [_constant(c) for c in code.co_consts], code.co_names, code.co_varnames)).encode())


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _code(value)
    if isinstance(value, (tuple, frozenset)):  # the order of a set differs from process to process
        entries = [_constant(entry) for entry in value]
        return f"{type(value).__name__}{entries if isinstance(value, tuple) else sorted(entries)}"
    return repr(value)


def _package(thing: Any) -> str:
    return (thing.__module__ or "builtins").partition(".")[0]


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if len(flat) else memoryview(b"")  # an empty one may have a stride of 0


def _digest(content: bytes | memoryview) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
