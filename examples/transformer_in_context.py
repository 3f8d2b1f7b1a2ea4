"""A small transformer that is adapted to tasks of different sizes: inputs by name, a padding mask, a list of Tasks.

Does a sequence contain the secret token? Each task has a secret of its own, which a few labelled sequences give away. The
baseline is the same transformer, untrained and adapted. Run it with: python examples/transformer_in_context.py
"""

import torch
from torch import Generator, Tensor, nn

from amaml_core import AMAML, Euler, Problem, Store, Tasks, evaluate, fit

TOKENS, LENGTH, WIDTH, STEPS, SHOTS = 6, 8, 16, 3, (8, 16)  # some tasks have 8 labelled sequences, others 16


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(TOKENS, WIDTH), nn.Linear(WIDTH, 1)
        self.layer = nn.TransformerEncoderLayer(WIDTH, nhead=2, dim_feedforward=2 * WIDTH, dropout=0.0, batch_first=True)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:  # (n, L) integers, and (n, L), true where there is none
        z = self.layer(self.embedding(tokens), src_key_padding_mask=padding)  # (n, L, width)
        there = ~padding[:, :, None]
        return self.head((z * there).sum(1) / there.sum(1))  # (n, 1)


def draw(generator: Generator, count: int, shots: int) -> Tasks:
    secret, n = torch.randint(TOKENS, (count, 1, 1), generator=generator), shots + 12
    tokens = torch.randint(TOKENS, (count, n, LENGTH), generator=generator)
    padding = torch.arange(LENGTH) >= torch.randint(3, LENGTH + 1, (count, n, 1), generator=generator)  # (B, S + Q, L)
    y = ((tokens == secret) & ~padding).any(2, keepdim=True).float()  # (B, S + Q, 1)
    x = {"tokens": tokens, "padding": padding}  # the model is called as model(**x)
    support, query = ({name: entry[:, part] for name, entry in x.items()} for part in (slice(shots), slice(shots, n)))
    return Tasks(support, y[:, :shots], query, y[:, shots:])


def sampler(generator: Generator) -> list[Tasks]:
    return [draw(generator, 8, shots) for shots in SHOTS]


def accuracy(logit: Tensor, y: Tensor) -> Tensor:
    return ((logit > 0) == (y > 0.5)).float().mean((1, 2))  # (B, n, 1) twice -> (B,)


def main(meta_steps: int = 60) -> dict[str, float]:
    torch.manual_seed(0)
    problem = Problem(Reader(), nn.functional.binary_cross_entropy_with_logits, trace=False)
    method = AMAML(horizon=0.3, solver=Euler(STEPS), memory=Store(graphs=STEPS))  # steps so few that their graphs are kept
    result = fit(method, problem, sampler, meta_steps, lambda p: torch.optim.Adam(p, lr=5e-3), progress=False)
    held_out, found = [draw(Generator().manual_seed(1), 50, shots) for shots in SHOTS], dict[str, float]()
    for name, theta in (("untrained", problem.initial_parameters()), ("trained", result.theta)):
        table = evaluate(method, problem, theta, held_out, accuracy, steps=(0, STEPS, 4 * STEPS))
        table["shots"] = [SHOTS[task // 50] for task in table["task"]]  # numbered in the order of the list
        print(f"{name}: share of right answers on new tasks\n{table.pivot_table('query', 'shots', 'step').round(3)}")
        found |= {f"{name} {step}": float(part.mean()) for step, part in table.groupby("step")["query"]}
    return found


if __name__ == "__main__":
    main()
