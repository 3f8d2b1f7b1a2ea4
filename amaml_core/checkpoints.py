"""The state of a training run as one safetensors file: tensors, and all else as JSON in its header. No pickle is loaded.

Its digest is over all of that, so a state that is given back is one that was written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .identity import describe, differences
from .records import write_beside
from .strict import digest

FORMAT = "amaml_core checkpoint 2"  # 1 had no digest
VERSIONS = "versions"  # the entry of an identity that names what the run was begun with; 0.1.0 wrote none at first


def save(path: Path, identity: dict[str, str], state: dict) -> None:
    """Write a checkpoint beside its target and rename it.

    Args:
        identity: what the run's result depends on, see :func:`amaml_core.identity.describe`.
        state: nested dictionaries and lists of tensors, numbers, strings and ``None``.

    Raises:
        TypeError: the state holds what a checkpoint cannot.
    """
    from safetensors.torch import save as encode

    tensors: dict[str, Tensor] = {}
    content = json.dumps({"identity": identity, "state": flatten(state, tensors)})
    header = {"format": FORMAT, "content": content, "digest": digest([content, describe(tensors)])}
    write_beside(path, encode(tensors, metadata=header))


def load(path: Path, identity: dict[str, str]) -> dict:
    """The state of the checkpoint of this very run.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no checkpoint, it is damaged, or it belongs to another run or was begun with another version of this
            package or of PyTorch; the message says in what they differ.
    """
    from safetensors import SafetensorError, safe_open

    remedy = "Delete it or choose another file"
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("format") != FORMAT:
            raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
        if header.get("digest") != digest([header.get("content"), describe(tensors)]):
            raise ValueError("it is damaged: its digest is not that of its content")
        content = json.loads(header["content"])
        there, state = dict(content["identity"]), unflatten(content["state"], tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no checkpoint that can be read: {error}. {remedy}") from None
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error}") from None
    own = {key: value for key, value in identity.items() if key.partition(".")[0] == VERSIONS}
    there = own | there
    if found := differences({key: there[key] for key in own}, own):  # first, as they may be why other entries differ
        lines = "\n  ".join(found)
        raise ValueError(f"{path} was begun with other versions:\n  {lines}\nGo on with those there, or choose another file")
    if found := differences(there, identity):
        lines = "\n  ".join(found[:20])
        raise ValueError(f"{path} belongs to another run:\n  {lines}\n{remedy}")
    return state


def flatten(state: Any, tensors: dict[str, Tensor], name: str = "state") -> Any:
    """What JSON can hold of a state; its tensors go into ``tensors``, and their names stay.

    Raises:
        TypeError: an entry is neither.
    """
    if isinstance(state, (Tensor, np.ndarray)):
        if name in tensors:
            raise TypeError(f"a checkpoint cannot hold two entries of the name {name}")
        tensors[name] = torch.as_tensor(state).detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(state, dict):
        pairs = [[key, flatten(value, tensors, f"{name}.{key}")] for key, value in state.items()]
        if bad := [key for key in state if not isinstance(key, (str, int))]:
            raise TypeError(f"a checkpoint cannot hold {name} with the key {bad[0]!r}")
        return {"dict": pairs}
    if isinstance(state, (list, tuple)):
        return {type(state).__name__: [flatten(value, tensors, f"{name}.{i}") for i, value in enumerate(state)]}
    if isinstance(state, np.generic):
        return state.item()
    if state is None or isinstance(state, (bool, int, float, str)):
        return state
    raise TypeError(f"a checkpoint cannot hold {name}, a {type(state).__name__}")


def unflatten(content: Any, tensors: dict[str, Tensor]) -> Any:
    """The state that :func:`flatten` took apart.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    if not isinstance(content, dict):
        return content
    ((kind, value),) = content.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: unflatten(entry, tensors) for key, entry in value}
    return {"list": list, "tuple": tuple}[kind](unflatten(entry, tensors) for entry in value)
