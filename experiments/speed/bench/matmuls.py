"""A worker of the bench: this machine's rate of matrix products.

    python experiments/speed/bench/matmuls.py THREADS

An "update" is one product of two 1024 x 1024 matrices: 2.15 GFLOP.
"""

import sys

import torch
from protocol import Gate

SIZE = 1024
FLOPS = 2 * SIZE**3


def main() -> None:
    """Multiply until the driver ends it."""
    gate = Gate()
    torch.set_num_threads(int(sys.argv[1]))
    left, right = torch.randn(SIZE, SIZE), torch.randn(SIZE, SIZE)
    while True:
        gate.between_updates()
        left @ right


if __name__ == "__main__":
    main()
