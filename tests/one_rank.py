"""One rank of a training run, started by test_distributed: ``python one_rank.py FOLDER CASES``, as it is or by torchrun."""

import json
import os
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss

from amaml_core import AMAML, IMAML, MAML, Euler, Problem, StopTraining, Tasks, fit, metrics, ranks

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


class Nudged(torch.optim.Adam):
    """Goes somewhat further than Adam by what it keeps to itself."""

    def __init__(self, parameters, by):
        super().__init__(parameters, 0.02)
        self._by = by

    def step(self):
        super().step()
        for p in self.param_groups[0]["params"]:
            p.data += self._by


class Sampler:
    """Draws meta-batches, and does ``fault`` at its draw number ``when``."""

    def __init__(self, tasks, ragged, fault, when, device):
        self.tasks, self.ragged, self._fault, self._when, self._drawn, self._device = tasks, ragged, fault, when, 0, device

    def __call__(self, generator):
        self._drawn += 1
        found = of_two_sizes(generator) if self.ragged else slopes(generator, self.tasks).to(self._device)
        if self._drawn != self._when:
            return found
        if self._fault == "raise":
            raise OSError("the disk is gone")
        if self._fault == "interrupt":
            raise KeyboardInterrupt
        if self._fault in ("SIGKILL", "SIGSTOP", "SIGTERM", "SIGINT"):
            os.kill(os.getpid(), getattr(signal, self._fault))
        if self._fault == "draw more":
            torch.rand(1, generator=generator)
        if self._fault == "other tasks":
            return slopes(torch.Generator().manual_seed(7), self.tasks)
        if self._fault == "diverge":  # rank 1 of 2 has no other tasks
            found.support_y[self.tasks // 2 :] = 1e200
        return found


def run(
    folder, rank, method="MAML", tasks=5, phi=False, ragged=False, fault=None, at=(1, 4), steps=20, timeout=60, other=(),
    device="cpu", **options,
):  # fmt: skip
    """A run of fit in which something goes wrong on rank ``at[0]`` at its draw number ``at[1]``, or is given other options."""
    options |= other if other and rank == at[0] else {}
    steps = options.pop("meta_steps", steps)
    sampler = Sampler(tasks, ragged, fault if rank == at[0] or fault == "diverge" else None, at[1], device)

    def told(step):
        if fault == "stop" and step.meta_step == at[1]:
            raise StopTraining
        (folder / f"told.{rank}").write_text(str(step.meta_step))

    with torch.random.fork_rng():
        torch.manual_seed(int(fault == "other start" and rank == at[0]))
        model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double().to(device)
    if phi:
        options["phi"] = torch.tensor([0.3, -0.2], dtype=F64, device=device)
        problem = Problem(model, weighted, query_loss=mse_loss)
    else:
        problem = Problem(model, getattr(nn.functional, options.pop("loss", "mse_loss")))
    if decay := options.pop("decay", None):
        options["scheduler"] = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, decay)
    if rate := options.pop("rate", None):
        options["scheduler"] = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate**step)
    if mean := options.pop("mean", None):
        model.register_buffer("mean", torch.tensor(mean))
        model.lock = threading.Lock()  # of which nothing tells whether it is another rank's
    if options.pop("validate", False):
        options |= {
            "validation": slopes(torch.Generator().manual_seed(9), 3).to(device),
            "validate_every": 3,
            "metric": metrics.rmse,
        }
    if options.pop("save", False):
        options["checkpoint"] = folder / "run" / "theta.safetensors"
    by = options.pop("by", 0.0)
    ranks.TIMEOUT = timedelta(seconds=timeout)
    given = {"progress": False, "callbacks": [told]} | options
    return fit(METHODS[method], problem, sampler, steps, lambda p: Nudged(p, by), **given)


def as_json(result):
    phi = None if result.phi is None else result.phi.tolist()
    found = {"theta": result.theta.tolist(), "phi": phi, "horizon": float(getattr(result.method, "horizon", 0))}
    return found | {"history": result.history.to_dict("list"), "best_step": result.best_step}


def main():
    torch.set_num_threads(1)
    top, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not torch.distributed.is_torchelastic_launched() and size > 1:
        torch.distributed.init_process_group("gloo", init_method=f"file://{top}/store", rank=rank, world_size=size)
    found = []
    for number, case in enumerate(cases):
        folder = top / str(number)
        folder.mkdir(exist_ok=True)
        try:
            found.append(as_json(run(folder, rank, **case)))
        except (Exception, KeyboardInterrupt) as error:
            found.append({"error": f"{type(error).__name__}: {error}"})
        (top / f"found.{rank}").write_text(json.dumps(found))


if __name__ == "__main__":
    from one_rank import main  # so that the sampler is the same in a process that imports this file

    main()
