"""Which of torch's gathers, and their gradients, repeat themselves on a GPU: bit for bit in five tries each.

    python experiments/resume/repeats.py

With torch's default algorithms and with its deterministic ones (`trainer.deterministic`).
"""

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding, one_hot

from amd_lightning.objectives.selected import products_at, rows_at

TRIES = 5


def main() -> int:
    """Print the table."""
    if not torch.cuda.is_available():
        sys.stderr.write("error: torch sees no GPU here\n")
        return 1
    found = {}
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic, warn_only=deterministic)
        for name, compute in computations(torch.device("cuda")).items():
            found[name, deterministic] = repeats(compute)
    print(f"| {torch.cuda.get_device_name()}, torch {torch.__version__} | default | deterministic |")
    print("|---|---|---|")
    for name in dict.fromkeys(name for name, _ in found):
        cells = ("repeats" if found[name, on] else "**differs**" for on in (False, True))
        print(f"| {name} | {' | '.join(cells)} |")
    return 0


def repeats(compute: Callable[[], Sequence[Tensor]]) -> bool:
    """Whether every try has the bits of the first."""
    first = compute()
    return all(
        all(torch.equal(one, other) for one, other in zip(first, compute(), strict=True))
        for _ in range(TRIES)
    )


def computations(device: torch.device) -> dict[str, Callable[[], Sequence[Tensor]]]:
    """By name: 640 states ask for 60 of 50 actions, so that every row is asked for 768 times."""
    torch.manual_seed(0)
    weight = torch.randn(50, 8, requires_grad=True, device=device)
    hidden = torch.randn(640, 8, device=device)
    actions = torch.randint(0, 50, (640, 60), device=device)
    asked = actions.flatten()
    of_one = torch.randn(640, 60, device=device)
    of_rows = torch.randn(640, 60, 8, device=device)
    flat = of_rows.flatten(0, 1)

    def gradient(result: Tensor, upstream: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(result, weight, upstream)

    return {
        "rows_at (ours), gradient": lambda: gradient(rows_at(weight, actions), of_rows),
        "products_at (ours), gradient": lambda: gradient(products_at(hidden, weight, actions), of_one),
        "weight[actions], gradient": lambda: gradient(weight[actions], of_rows),
        "embedding, gradient": lambda: gradient(embedding(actions, weight), of_rows),
        "index_select, gradient": lambda: gradient(weight.index_select(0, asked), flat),
        "gather, gradient": lambda: gradient((hidden @ weight.T).gather(1, actions), of_one),
        "scatter_add": lambda: (torch.zeros(640, 50, device=device).scatter_add(1, actions, of_one),),
        "index_add": lambda: (torch.zeros(50, 8, device=device).index_add(0, asked, flat),),
        "index_put, accumulating": lambda: (
            torch.zeros(50, 8, device=device).index_put((asked,), flat, accumulate=True),
        ),
        "a product with one-hot rows": lambda: (one_hot(asked, 50).float().T @ flat,),
    }


if __name__ == "__main__":
    sys.exit(main())
