"""A trained initialisation as one safetensors file: the model's parameters and buffers by name, and phi.

The file is a state dict, which ``safetensors.torch.load_model(model, path)`` loads into the plain module without this package
(with ``strict=False`` if it holds phi, which is no parameter of the module). Its header says what the model is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .identity import describe, differences
from .problem import Problem
from .records import write_beside
from .strict import digest, parse

FORMAT = "amaml_core initialisation 1"
PHI = "amaml_core.phi"  # its key in the file
REMEDY = "Save the initialisation again, or get another copy of the file"
CONVERT = "convert it, or register the buffer with persistent=False"
PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, eq=False)
class Initialisation:
    """What :func:`load_initialisation` gives: theta (P,), and phi (M,) or ``None``.

    >>> Initialisation(torch.zeros(3)).phi is None
    True
    """

    theta: Tensor
    phi: Tensor | None = None


def save_initialisation(path: str | Path, problem: Problem, theta: Tensor, phi: Tensor | None = None) -> None:
    """Write an initialisation beside its target, and rename it.

    The parameters are theta's, the buffers the model's own. A parameter that the model holds under two names stands under the
    first, as in ``safetensors.torch.save_model``.

    Args:
        path: of the file, which is replaced if there is one.
        problem: whose model theta belongs to.
        theta: (P,), finite, in the precision of the model.
        phi: (M,), finite, or ``None``.

    Raises:
        TypeError: theta or phi is no floating-point tensor.
        ValueError: theta or phi is of another shape or precision or not finite, or the model holds what the file cannot.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> problem = Problem(nn.Linear(2, 1), nn.functional.mse_loss)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_initialisation(f"{folder}/theta.safetensors", problem, torch.ones(3))
    ...     load_initialisation(f"{folder}/theta.safetensors", problem).theta
    tensor([1., 1., 1.])
    """
    from safetensors.torch import save as encode

    _check(problem, theta, phi)
    tensors = _parameters(problem.model, theta) | _buffers(problem.model)
    if PHI in tensors:
        raise ValueError(f"the model has an entry {PHI!r}, the name under which the file keeps phi; rename it")
    if phi is not None:
        tensors[PHI] = phi
    tensors = {name: _dense(name, t) for name, t in tensors.items()}
    header = {
        "format": FORMAT,
        "version": _version(),
        "parameters": str(problem.size),
        "dtype": str(theta.dtype),
        "phi": "" if phi is None else PHI,
        "model": json.dumps(architecture(problem.model)),
        "digest": digest(describe(tensors)),
    }
    try:
        content = encode(tensors, metadata=header)
    except KeyError as error:
        names = [name for name, t in tensors.items() if t.dtype == error.args[0]]
        raise ValueError(f"a safetensors file cannot hold {names}, of {error.args[0]}; {CONVERT}") from None
    write_beside(Path(path), content)


def load_initialisation(path: str | Path, problem: Problem) -> Initialisation:
    """The initialisation of a model like ``problem``'s, on the device of that one.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no initialisation, or damaged; or it belongs to a model of another architecture or precision, or with
            other buffers. The message says in what they differ.

    >>> import tempfile
    >>> problem, other = (Problem(nn.Linear(size, 1), nn.functional.mse_loss) for size in (2, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_initialisation(f"{folder}/theta.safetensors", problem, torch.ones(3), phi=torch.zeros(2))
    ...     print(load_initialisation(f"{folder}/theta.safetensors", problem).phi)
    ...     load_initialisation(f"{folder}/theta.safetensors", other)
    Traceback (most recent call last):
        ...
    ValueError: ...theta.safetensors belongs to another model:
      model.in_features: 2 there, 3 here
      model.weight: parameter (1, 2) there, parameter (1, 3) here
    """
    header, model_there, tensors = _read(path)
    model = problem.model
    if found := _differences(model_there, architecture(model)):
        raise ValueError(f"{path} belongs to another model:\n  " + "\n  ".join(found[:20]))
    own, parameters, buffers = next(model.parameters()), dict(model.named_parameters()), _buffers(model)
    if odd := {*parameters, *buffers, *([PHI] if header["phi"] else [])} ^ tensors.keys():
        raise ValueError(f"{path} is damaged: {sorted(odd)} are missing, or too many. {REMEDY}")
    if odd := {name for name, p in parameters.items() if tensors[name].shape != p.shape}:
        raise ValueError(f"{path} is damaged: {sorted(odd)} are of another shape than its header says. {REMEDY}")
    if foreign := [tensors[name].dtype for name, p in parameters.items() if tensors[name].dtype != p.dtype]:
        raise ValueError(f"{path} holds {foreign[0]}, and the model {own.dtype}; convert that with model.to({foreign[0]})")
    if other := [name for name, buffer in buffers.items() if describe(buffer) != describe(tensors[name])]:
        raise ValueError(
            f"{path} belongs to a model with other values of the buffers {other}; load them first, by "
            "safetensors.torch.load_model(model, path, strict=False)"
        )
    theta, phi = torch.cat([tensors[name].reshape(-1) for name in parameters]), tensors.get(PHI)  # (P,), (M,)
    try:
        _check(problem, theta, phi)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}. {REMEDY}") from None
    return Initialisation(theta.to(own.device), None if phi is None else phi.to(own.device))


def architecture(model: nn.Module) -> dict[str, dict[str, str]]:
    """What a model is, whatever its parameters: names and shapes, and the kinds of modules; and the settings of these.

    The file is to be read elsewhere, by other versions of Python and PyTorch, so functions and classes count by their names.

    >>> architecture(nn.Linear(2, 1, bias=False))["structure"]
    {'model': 'Linear', 'model.weight': 'parameter (1, 2)'}
    """
    modules = {".".join(["model", *name.split(".")] if name else ["model"]): part for name, part in model.named_modules()}
    structure = {place: type(part).__name__ for place, part in modules.items()}
    structure |= {f"model.{name}": f"parameter {tuple(p.shape)}" for name, p in model.named_parameters()}
    structure |= {f"model.{name}": f"buffer {tuple(b.shape)}" for name, b in _buffers(model).items()}
    settings = {f"{place}.{key}": _setting(value) for place, part in modules.items() for key, value in vars(part).items()}
    shown = lambda key: not key.startswith("_") and key not in ("training", "device")  # noqa: E731
    return {
        "structure": structure,
        "settings": {k: v for k, v in settings.items() if v is not None and shown(k.rpartition(".")[2])},
    }


def _setting(value: Any) -> str | None:
    """A setting of a module in words; ``None`` for what is none."""
    if isinstance(value, PLAIN) or isinstance(value, (list, tuple)) and all(isinstance(entry, PLAIN) for entry in value):
        return repr(value)
    return value.__name__ if callable(value) and hasattr(value, "__name__") else None


def _differences(there: dict[str, dict[str, str]], here: dict[str, dict[str, str]]) -> list[str]:
    """In what two models differ. A setting that one of them does not know is one that another version of PyTorch brought."""
    both = there["settings"].keys() & here["settings"].keys()
    one, other = (side["structure"] | {key: side["settings"][key] for key in both} for side in (there, here))
    return differences(one, other)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those of its buffers that a state dict holds."""
    held = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in held}


def _read(path: str | Path) -> tuple[dict[str, str], dict[str, dict[str, str]], dict[str, Tensor]]:
    """The header of a file, the model in it, and its tensors.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no initialisation, or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("format") != FORMAT:
            raise ValueError(f"its format is {header.get('format')!r}, not {FORMAT!r}")
        if missing := {"digest", "model", "phi"} - header.keys():
            raise ValueError(f"its header has no {sorted(missing)[0]!r}")
        if header["digest"] != digest(describe(tensors)):
            raise ValueError("it is damaged: its digest is not that of its content")
        if not _is_model(model := parse(header["model"])):
            raise ValueError("its header says nothing of the structure and the settings of its model")
        return header, model, tensors
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no initialisation that can be read: {error}. {REMEDY}") from None
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error}") from None


def _is_model(content: Any) -> bool:
    """Whether it is what :func:`architecture` gives."""
    return (
        isinstance(content, dict)
        and content.keys() == {"structure", "settings"}
        and all(isinstance(part, dict) and all(isinstance(v, str) for v in part.values()) for part in content.values())
    )


def _check(problem: Problem, theta: Tensor, phi: Tensor | None) -> None:
    """Refuse what a file could not give back as an initialisation of this problem."""
    for name, given in {"theta": theta, "phi": phi}.items():
        if given is None and name == "phi":
            continue
        if not isinstance(given, Tensor) or not given.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, not {given!r:.100}")
        if given.ndim != 1 or not given.isfinite().all():
            raise ValueError(f"{name} must be a vector of finite numbers, not {tuple(given.shape)}: {given!r:.100}")
    if theta.shape != (problem.size,):
        raise ValueError(f"theta has shape {tuple(theta.shape)}, but the model has P={problem.size} parameters: it must be (P,)")
    dtype = next(problem.model.parameters()).dtype
    if theta.dtype != dtype:
        raise ValueError(f"theta is {theta.dtype}, but the model is {dtype}; use theta.to({dtype}), or model.to({theta.dtype})")


def _parameters(model: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """The model's parameters by name, with the values of theta (P,)."""
    named = dict(model.named_parameters())
    pieces = theta.split([p.numel() for p in named.values()])  # (P,) -> one piece for each parameter
    return {name: piece.view(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}


def _dense(name: str, tensor: Tensor) -> Tensor:
    """A copy as a file holds it."""
    try:
        return tensor.detach().cpu().contiguous().clone()
    except (RuntimeError, NotImplementedError) as error:  # a sparse one, or one without data
        what = f"{tensor.layout} on {tensor.device}"
        raise ValueError(f"a safetensors file cannot hold {name!r}, {what} ({error}); {CONVERT}") from None


def _version() -> str:
    try:
        return metadata.version("amaml_core")
    except metadata.PackageNotFoundError:  # not installed
        return "unknown"
