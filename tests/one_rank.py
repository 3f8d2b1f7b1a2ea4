"""One rank of a training run, started by test_distributed: ``python one_rank.py FOLDER OPTIONS``, as it is or by torchrun."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss

from amaml_core import AMAML, IMAML, MAML, Euler, Problem, StopTraining, Tasks, fit, metrics

F64 = torch.float64
METHODS = {
    "MAML": MAML(0.05, 3), "A-MAML": AMAML(0.15, Euler(3)), "skipping": AMAML(0.15, Euler(3), on_divergence="skip"),
    "iMAML": IMAML(on_negative_curvature="truncate"),
}  # fmt: skip


def weighted(prediction, target, phi):
    return (phi[0].exp() * (prediction - target).square() + phi[1] * prediction).mean()


def slopes(generator, count=5):
    """Tasks y = a x; they are all drawn on each rank."""
    slope = torch.randn(count, 1, 1, generator=generator, dtype=F64)
    x = torch.randn(2, count, 5, 1, generator=generator, dtype=F64)
    return Tasks(x[0], slope * x[0], x[1], slope * x[1])


def of_two_sizes(generator):
    tasks = slopes(generator)
    return [tasks[:1], Tasks(*(t[1:4, :3] for t in tasks.tensors)), tasks[4:]]


def run(folder, rank, method="MAML", tasks=5, phi=False, ragged=False, fault=None, at=(1, 3), steps=20, interval=None, **options):
    """The arguments of fit, and what goes wrong on rank ``at[0]`` in the meta step ``at[1]``."""
    drawn, (guilty, when) = [0], at

    def here(name):
        return fault == name and rank == guilty and drawn[0] == when

    def sampler(generator):
        drawn[0] += 1
        found = of_two_sizes(generator) if ragged else slopes(generator, tasks)
        if here("raise"):
            raise OSError("the disk with the tasks is gone")
        if here("interrupt"):
            raise KeyboardInterrupt
        if here("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if here("draw more"):
            torch.rand(1, generator=generator)
        if here("other tasks"):
            return slopes(torch.Generator().manual_seed(7), tasks)
        if fault == "diverge" and drawn[0] == when or fault == "skip":  # the last task, the same on every rank
            found.support_y[-1 if fault == "diverge" else slice(2, None)] = 1e200
        return found

    def told(step):
        if fault == "stop" and step.meta_step == when:
            raise StopTraining
        (folder / f"told.{rank}").write_text(str(step.meta_step))

    with torch.random.fork_rng():
        torch.manual_seed(rank if fault == "start" else 0)
        model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    if phi:
        options["phi"] = torch.tensor([0.3, -0.2], dtype=F64)
        problem = Problem(model, weighted, query_loss=mse_loss)
    else:
        problem = Problem(model, mse_loss)
    if options.pop("validate", False):
        options |= {"validation": slopes(torch.Generator().manual_seed(9), 3), "validate_every": 3, "metric": metrics.rmse}
    if options.pop("save", False):
        options["checkpoint"] = folder / "run" / "theta.safetensors"
    if interval is not None:
        from amaml_core import training

        training.SAVE_EVERY_SECONDS = interval
    given = {"progress": False, "callbacks": [told]} | options
    return fit(METHODS[method], problem, sampler, steps, lambda p: torch.optim.Adam(p, 0.02), **given)


def main():
    torch.set_num_threads(1)
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not torch.distributed.is_torchelastic_launched() and size > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        result = run(folder, rank, **options)
        phi = None if result.phi is None else result.phi.tolist()
        history = result.history.to_dict("list")
        found = {"theta": result.theta.tolist(), "phi": phi, "history": history, "best_step": result.best_step}
        found["learned"] = float(getattr(result.method, "horizon", 0))
    except (Exception, KeyboardInterrupt) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    (folder / f"found.{rank}").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
