"""What Tasks, Problem and the methods accept, compute and refuse."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from amaml_core import AMAML, FOMAML, IMAML, MAML, RK4, Euler, GradientDescent, Problem, Reptile, Tasks, meta_gradient


def tasks(b=2, s=3, q=4, dtype=torch.float32):
    return Tasks(
        torch.zeros(b, s, 2, dtype=dtype),
        torch.zeros(b, s, 1, dtype=dtype),
        torch.zeros(b, q, 2, dtype=dtype),
        torch.zeros(b, q, 1, dtype=dtype),
    )


def test_tasks_slice_split_and_move():
    data = Tasks(
        torch.arange(6.0).view(3, 2, 1),
        torch.arange(6).view(3, 2),
        torch.arange(3.0).view(3, 1, 1),
        torch.arange(3).view(3, 1),
    )
    assert len(data) == 3
    assert torch.equal(data[1:].support_x, data.support_x[1:]) and torch.equal(data[[2, 0]].query_y, data.query_y[[2, 0]])
    assert [len(chunk) for chunk in data.split(2)] == [2, 1] and [len(chunk) for chunk in data.split(None)] == [3]
    moved = data.to(dtype=torch.float64)
    assert moved.support_x.dtype == torch.float64 and moved.support_y.dtype == torch.int64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"support_x": torch.zeros(3, 3, 2)}, ValueError, "number of tasks differs"),
        ({"support_y": torch.zeros(2, 5, 1)}, ValueError, "number of support points differs"),
        ({"query_y": torch.zeros(2, 5, 1)}, ValueError, "number of query points differs"),
        ({"query_x": torch.zeros(2, 0, 2), "query_y": torch.zeros(2, 0, 1)}, ValueError, "non-empty"),
        ({"support_y": torch.zeros(2)}, ValueError, "point axis"),
        ({"support_x": [[1.0]]}, TypeError, "must be a torch.Tensor"),
        ({"query_y": torch.zeros(2, 4, 1, device="meta")}, ValueError, "different devices"),
    ],
)
def test_tasks_refuse_what_does_not_fit(change, error, message):
    with pytest.raises(error, match=message):
        Tasks(**(vars(tasks()) | change))


def test_flat_parameters_are_the_models_in_order():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    problem = Problem(model, mse_loss)
    theta = problem.initial_parameters()
    assert torch.equal(theta, nn.utils.parameters_to_vector(model.parameters())) and not theta.requires_grad
    x = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(problem.predict(theta.expand(4, -1), x), model(x), atol=1e-6)


def test_loss_and_gradient_are_the_modules_own():
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64), torch.randint(2, (3, 5), generator=generator)
    data, problem = Tasks(x, y, x, y), Problem(model, cross_entropy)
    u = problem.initial_parameters().expand(3, -1)
    gradient = problem.gradient(u, *data.support)
    for b in range(3):
        loss = cross_entropy(model(x[b]), y[b])
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])
        assert torch.allclose(problem.losses(u, *data.support)[b], loss, rtol=1e-13)
        assert torch.allclose(gradient[b], expected, rtol=1e-12, atol=1e-15)


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double()
    model[2].weight = model[0].weight
    problem = Problem(model, mse_loss)
    assert problem.size == 4 + 2 + 2
    x = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient = problem.gradient(problem.initial_parameters()[None], *Tasks(x, x, x, x).support)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(mse_loss(model(x[0]), x[0]), list(model.parameters()))])
    assert torch.allclose(gradient[0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1)), "track_running_stats=False"),
        (nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5)), "Dropout"),
        (nn.Tanh(), "no parameters"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1).double()), "differ in dtype"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, device="meta")), "differ in device"),
    ],
)
def test_models_that_cannot_be_adapted_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        Problem(model, mse_loss)


def test_integer_parameters_are_refused():
    model = nn.Linear(2, 1)
    model.count = nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ValueError, match="'count' is torch.int64"):
        Problem(model, mse_loss)


def test_dropout_that_is_off_is_accepted():
    Problem(nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5)).eval(), mse_loss)


def test_inputs_that_do_not_fit_are_refused_before_any_work():
    problem = Problem(nn.Linear(2, 1), mse_loss)
    theta = problem.initial_parameters()
    for bad, data, message in (
        (theta[:-1], tasks(), "P=3"),
        (theta.double(), tasks(), "float64 but tasks.support_x is torch.float32"),
        (theta, tasks(dtype=torch.float64), "use tasks.to"),
        (theta.to("meta"), tasks(), "is on meta"),
    ):
        with pytest.raises(ValueError, match=message):
            meta_gradient(MAML(), problem, bad, data)
    with pytest.raises(ValueError, match="must return a scalar"):
        meta_gradient(MAML(), Problem(nn.Linear(2, 1), lambda p, t: (p - t).square()), theta, tasks())
    with pytest.raises(ValueError, match="chunk_size"):
        Problem(nn.Linear(2, 1), mse_loss, chunk_size=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Euler(0), "Euler needs steps >= 1"), (lambda: RK4(-3), "RK4 needs steps"), (lambda: MAML(lr=0), "lr > 0"),
        (lambda: FOMAML(lr=0.1, steps=0), "FOMAML needs steps"), (lambda: Reptile(lr=float("nan")), "Reptile needs lr > 0"),
        (lambda: AMAML(horizon=0.0), "horizon > 0"), (lambda: AMAML(proximal=-1.0), "proximal >= 0"),
        (lambda: IMAML(regularization=0.0), "regularization > 0"), (lambda: IMAML(cg_steps=0), "cg_steps >= 1"),
        (lambda: GradientDescent(steps=0), "steps >= 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


# ------------------------------------------------------------------------------------------------- whatever a model is made of


class Keeping(nn.Linear):
    """Keeps what it has computed."""

    def forward(self, x):
        self.features = super().forward(x)
        return self.features


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("wrap", [lambda m: m, nn.utils.weight_norm], ids=["keeps a result", "weight norm"])
def test_a_model_that_keeps_what_it_computed_can_be_copied(wrap):
    model = wrap(Keeping(2, 1))
    model(torch.ones(1, 2))
    problem = Problem(model, mse_loss)
    theta = problem.initial_parameters() + 1
    copied, x = problem.module(theta), torch.ones(3, 2)
    assert torch.allclose(copied(x), problem.predict(theta[None], x[None])[0])
    assert not torch.allclose(copied(x), model(x))


def plain():
    return nn.Sequential(nn.Linear(2, 1))


def hooked():
    model = plain()
    model[0].weight.register_hook(lambda gradient: 0 * gradient)
    return model


def with_nothing():
    model = plain()
    model.extra = nn.Parameter(torch.empty(0))
    return model


def compiled_in_place():
    model = plain()
    model.compile()
    return model


@pytest.mark.parametrize("build", [with_nothing, compiled_in_place])
def test_what_changes_nothing_is_no_obstacle(build):
    torch.manual_seed(0)
    model = build()
    problem, data = Problem(model, mse_loss), tasks()
    bare = Problem(plain(), mse_loss)
    theta = problem.initial_parameters()
    assert torch.equal(*(meta_gradient(MAML(), p, theta, data).gradient for p in (problem, bare)))


def test_a_hook_of_a_parameter_is_named():
    problem = Problem(hooked(), mse_loss)
    data = tasks()
    with pytest.raises(ValueError, match=r"'0.weight' has a tensor hook"):
        ones = Tasks(*(t + 1 for t in data.tensors))
        meta_gradient(MAML(), problem, problem.initial_parameters(), ones)


@pytest.mark.parametrize("given", [{"loss": nn.MSELoss}, {"loss": mse_loss, "query_loss": nn.L1Loss}])
def test_a_class_is_no_loss(given):
    with pytest.raises(TypeError, match="give an instance of it"):
        Problem(plain(), **given)


HARD = {
    "layer": lambda: Problem(nn.Sequential(nn.Linear(2, 3), nn.Hardsigmoid(), nn.Linear(3, 1)), mse_loss),
    "loss": lambda: Problem(plain(), lambda p, y: torch.cdist(p, y).mean()),
}


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("method", [AMAML(0.1, Euler(2)), MAML(0.1, 2), IMAML(GradientDescent(0.1, 2), 2.0)])
def test_methods_name_the_operation_without_a_second_derivative(name, method):
    problem, data = HARD[name](), Tasks(*(t + i for i, t in enumerate(tasks().tensors)))
    theta = problem.initial_parameters()
    with pytest.raises(ValueError, match=r"no derivative of the order.*(hardsigmoid|cdist).*FOMAML and Reptile"):
        meta_gradient(method, problem, theta, data)
    for simple in (FOMAML(0.1, 2), Reptile(0.1, 2)):
        assert meta_gradient(simple, problem, theta, data).gradient.isfinite().all()


@pytest.mark.parametrize("method", [AMAML(0.1, Euler(2)), MAML(0.1, 2)])
def test_a_query_loss_without_a_gradient_is_refused(method):
    problem = Problem(plain(), mse_loss, query_loss=lambda p, y: (p.round() == y).float().mean())
    with pytest.raises(ValueError, match="query loss depends on no parameter"):
        meta_gradient(method, problem, problem.initial_parameters(), tasks())
