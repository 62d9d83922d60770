"""One perceptron trained by ordinary PyTorch: `python -m tests.benchmarks.gpu.plain DEVICE WIDTH STEPS`.

Prints its steps per second as JSON, start-up excluded.
"""

from __future__ import annotations

import json
import sys
import time

import torch


def main(device: str, width: int, steps: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(1000, 40, device=device), torch.randint(10, (1000,), device=device)
    model = torch.nn.Sequential(
        torch.nn.Linear(40, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, width),
        torch.nn.ReLU(),
        torch.nn.Linear(width, 10),
    ).to(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def train(count: int) -> None:
        order = torch.randperm(1000, device=device)
        for step in range(count):
            if step % 10 == 0:
                order = torch.randperm(1000, device=device)
            rows = order[step % 10 * 100 : step % 10 * 100 + 100]
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimiser.step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    train(50)
    began = time.perf_counter()
    train(steps)
    print(json.dumps({"rate": steps / (time.perf_counter() - began)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
