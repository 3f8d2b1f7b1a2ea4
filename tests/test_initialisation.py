"""A trained initialisation comes back as it was written, into this package and into plain PyTorch, or is refused."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from torch.nn.functional import mse_loss

from amaml_core import Problem, initialisation
from amaml_core.identity import describe
from amaml_core.initialisation import load_initialisation, save_initialisation
from amaml_core.strict import digest

F64 = torch.float64
ZEROS = torch.zeros(13, dtype=F64)


class Tied(nn.Module):
    """Has one weight under two names, and buffers of which one is not kept."""

    def __init__(self, width=3):
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(math.nan))
        self.register_buffer("kept", torch.arange(4))
        self.register_buffer("cache", torch.zeros(2), persistent=False)


def batch_norm():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model(torch.randn(8, 2))
    return model.eval()


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), "tied": Tied, "batch norm": batch_norm,
    "attention": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
}  # fmt: skip


def problem(model, dtype=F64):
    torch.manual_seed(0)
    return Problem(model().to(dtype), mse_loss)


def random_theta(p, seed=5):
    return torch.randn(p.size, generator=torch.Generator().manual_seed(seed), dtype=F64).to(p.initial_parameters().dtype)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "there" / "theta.safetensors"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16])
def test_an_initialisation_comes_back_to_the_bit(name, dtype, path):
    p = problem(MODELS[name], dtype)
    before = describe(p.model.state_dict())
    theta, phi = random_theta(p), torch.tensor([0.25, -1.0], dtype=F64)
    for extra in (None, phi):
        save_initialisation(path, p, theta, extra)
        found = load_initialisation(path, problem(MODELS[name], dtype))
        assert torch.equal(found.theta, theta) and found.theta.dtype == dtype
        assert found.phi is extra or torch.equal(found.phi, extra)
    assert [f.name for f in path.parent.iterdir()] == ["theta.safetensors"]
    assert describe(p.model.state_dict()) == before


@pytest.mark.parametrize("name", MODELS)
def test_the_plain_module_loads_it_without_this_package(name, path):
    p = problem(MODELS[name])
    theta = random_theta(p)
    save_initialisation(path, p, theta)
    plain = MODELS[name]().double()
    for b in plain.buffers():
        b.zero_()
    assert load_model(plain, path) == (set(), [])  # nothing missing, nothing unexpected
    assert torch.equal(Problem(plain, mse_loss).initial_parameters(), theta)
    for key in p.model.state_dict().keys() & dict(p.model.named_buffers()).keys():
        assert torch.equal(plain.get_buffer(key).nan_to_num(7), p.model.get_buffer(key).nan_to_num(7))
    if name != "tied":
        MODELS[name]().double().load_state_dict(load_file(path))
    save_initialisation(path, p, theta, torch.ones(2))
    assert load_model(plain, path, strict=False) == (set(), ["amaml_core.phi"])


def test_the_header_says_what_the_file_is(path):
    p = problem(MODELS["mlp"])
    save_initialisation(path, p, random_theta(p), torch.ones(2))
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert header["format"] == "amaml_core initialisation 1" and header["version"][0].isdigit()
    assert (header["parameters"], header["dtype"], header["phi"]) == ("13", "torch.float64", "amaml_core.phi")
    assert json.loads(header["model"])["structure"]["model.0.weight"] == "parameter (3, 2)"


class Wide(nn.Linear):
    pass


class Factor(nn.Module):
    def __init__(self, factor, activation=torch.tanh):
        super().__init__()
        self.layer, self.factor, self.activation = nn.Linear(2, 1), factor, activation


def behind(activation):
    return nn.Sequential(nn.Linear(2, 1), activation)


def parameters(*sizes):
    return nn.ParameterList([torch.ones(size) for size in sizes])


PAIRS = {
    "size": (lambda: nn.Linear(2, 1), lambda: nn.Linear(3, 1), r"model.weight: parameter \(1, 2\) there, parameter \(1, 3\) here"),
    "activation": (lambda: behind(nn.ReLU()), lambda: behind(nn.GELU()), "model.1: ReLU there, GELU here"),
    "transposed": (lambda: nn.Bilinear(2, 3, 1), lambda: nn.Bilinear(3, 2, 1), "model.in1_features: 2 there, 3 here"),
    "order": (lambda: parameters(2, 3), lambda: parameters(3, 2), r"model.0: parameter \(2,\) there"),
    "heads": (lambda: nn.MultiheadAttention(4, 1), lambda: nn.MultiheadAttention(4, 2), "model.num_heads: 1 there, 2 here"),
    "padding": (lambda: nn.Conv2d(1, 1, 3), lambda: nn.Conv2d(1, 1, 3, padding=1), r"model.padding: \(0, 0\) there, \(1, 1\) here"),
    "class": (lambda: nn.Linear(2, 1), lambda: Wide(2, 1), "model: Linear there, Wide here"),
    "attribute": (lambda: Factor(1.0), lambda: Factor(2.0), "model.factor: 1.0 there, 2.0 here"),
    "function": (lambda: Factor(1.0), lambda: Factor(1.0, torch.relu), "model.activation: tanh there, relu here"),
    "untied": (Tied, lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "model: Tied there, Sequential here"),
    "buffers": (lambda: nn.BatchNorm1d(2, track_running_stats=False), lambda: nn.BatchNorm1d(2).eval(), "running_mean: nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_a_file_of_another_architecture_is_refused_with_the_difference(name, path):
    there, here, message = PAIRS[name]
    p = problem(there)
    save_initialisation(path, p, random_theta(p))
    with pytest.raises(ValueError, match=f"belongs to another model:\n(.|\n)*{message}"):
        load_initialisation(path, problem(here))
    load_initialisation(path, problem(there))


def test_what_is_no_part_of_the_architecture_does_not_count(path):
    p = problem(MODELS["mlp"])
    save_initialisation(path, p, random_theta(p))
    other = problem(MODELS["mlp"])
    other.model.eval()
    other.model[0].requires_grad_(False)
    other.model.device = "cpu"
    p.model.device = "cuda"
    save_initialisation(path, p, random_theta(p))
    other.model[0].since_the_next_version = True  # of PyTorch, say
    load_initialisation(path, other)


def test_other_buffers_are_refused_until_they_are_loaded(path):
    p = problem(batch_norm)
    save_initialisation(path, p, random_theta(p), torch.ones(1))
    fresh = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double().eval()
    with pytest.raises(ValueError, match=r"other values of the buffers \['1.running_mean', .*load_model\(model, path"):
        load_initialisation(path, Problem(fresh, mse_loss))
    load_model(fresh, path, strict=False)
    assert torch.equal(load_initialisation(path, Problem(fresh, mse_loss)).theta, random_theta(p))


def test_another_precision_is_refused(path):
    p = problem(MODELS["mlp"])
    save_initialisation(path, p, random_theta(p))
    with pytest.raises(ValueError, match=r"holds torch.float64, and the model torch.float32; convert"):
        load_initialisation(path, problem(MODELS["mlp"], torch.float32))


def changed_header(path, tensors=None, **change):
    with safe_open(path, framework="pt") as file:
        header = {k: v for k, v in (file.metadata() | change).items() if v is not None}
    save_file(load_file(path) if tensors is None else tensors, path, metadata=header)


def test_damaged_and_foreign_files_are_refused(path):
    p = problem(MODELS["mlp"])
    save_initialisation(path, p, random_theta(p))
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for content in (b"", b"text", whole[:100], whole[:-8], whole + b"0", bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no initialisation that can be read"):
            load_initialisation(path, p)
    for change, message in (
        ({"format": "amaml_core initialisation 2"}, "its format is 'amaml_core initialisation 2', not"),
        ({"format": None}, "its format is None"), ({"digest": None}, "digest"), ({"digest": "0"}, "damaged"),
        ({"model": "{"}, "no initialisation"), ({"model": "[]"}, "no initialisation"), ({"model": "{}"}, "structure"),
        ({"phi": initialisation.PHI}, r"is damaged: \['amaml_core.phi'\] are missing"), ({"phi": None}, "phi"),
    ):  # fmt: skip
        path.write_bytes(whole)
        changed_header(path, **change)
        with pytest.raises(ValueError, match=message):
            load_initialisation(path, p)
    save_file(p.model.state_dict(), path)
    with pytest.raises(ValueError, match="its format is None"):
        load_initialisation(path, p)
    with pytest.raises(OSError):
        load_initialisation(path.with_name("nothing"), p)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(3, 2)}, r"is damaged: \['weight'\] are of another shape"),
        ({"weight": torch.full((1, 2), math.nan)}, "is damaged: theta must be a vector of finite numbers"),
        ({"bias": torch.ones(1).half()}, "holds torch.float16, and the model torch.float32"),
        ({"weight": torch.ones(1, 2).long()}, "holds torch.int64, and the model torch.float32"),
        ({initialisation.PHI: torch.ones(2, 3)}, "is damaged: phi must be a vector"),
        ({initialisation.PHI: torch.ones(2).long()}, "is damaged: phi must be a floating-point tensor"),
    ],
)
def test_a_file_of_other_content_with_a_digest_that_is_right_is_refused_too(change, message, path):
    p = Problem(torch.nn.Linear(2, 1), torch.nn.functional.mse_loss)
    save_initialisation(path, p, torch.ones(3), torch.ones(2))
    tensors = load_file(path) | change
    changed_header(path, tensors, digest=digest(describe(tensors)))
    with pytest.raises(ValueError, match=message) as caught:
        load_initialisation(path, p)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("theta", "phi", "error", "message"),
    [
        (ZEROS[:12], None, ValueError, r"P=13 parameters"), (ZEROS[None], None, ValueError, "a vector"),
        ([0.0], None, TypeError, "theta must be a floating"),
        (torch.zeros(13), None, ValueError, "theta is torch.float32, but the model is torch.float64"),
        (ZEROS * math.nan, None, ValueError, "theta must be a vector of finite numbers"),
        (ZEROS.long(), None, TypeError, "floating"), (None, None, TypeError, "theta must be"),
        (ZEROS, 3, TypeError, "phi must be"), (ZEROS, torch.zeros(2, 2), ValueError, "phi must be a vector"),
        (ZEROS, torch.tensor([math.inf]), ValueError, "phi must be a vector of finite numbers"),
    ],
)  # fmt: skip
def test_what_could_not_come_back_is_not_written(theta, phi, error, message, path):
    with pytest.raises(error, match=message):
        save_initialisation(path, problem(MODELS["mlp"]), theta, phi)
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("buffer", "what"),
    [
        (torch.zeros(2, dtype=torch.complex128), r"\['0.odd'\], of torch.complex128"),
        (torch.eye(2).to_sparse(), "'0.odd', torch.sparse_coo on cpu"), (torch.empty(2, device="meta"), "'0.odd', .* on meta"),
    ],
)  # fmt: skip
def test_a_buffer_that_no_file_holds_is_refused_by_name(buffer, what, path):
    model = nn.Sequential(nn.Linear(2, 1))
    model[0].register_buffer("odd", buffer)
    with pytest.raises(ValueError, match=rf"cannot hold {what}.*; convert it, or register"):
        save_initialisation(path, Problem(model, mse_loss), torch.zeros(3))
    assert not path.parent.exists()


def test_an_entry_of_the_models_own_under_the_name_of_phi_is_refused(path):
    model = nn.Module()
    model.amaml_core = nn.Module()
    model.amaml_core.phi = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="the name under which the file keeps phi"):
        save_initialisation(path, Problem(model, mse_loss), torch.zeros(2))
