"""Time of the int8 layers of a decoder block over that of `nn.Linear` in fp32, forward and backward to the input.

Run as: python benchmarks/int8_linear.py [--width 1024] [--tokens 512] [--threads 1] [--rounds 9]

Both run alternately in one process and CPU time is counted, so that a busy machine slows both alike; with more threads
than free cores CPU time counts their waiting too. The figure is the median of the ratios of rounds.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from backends.int8 import Int8Linear


def block(width: int) -> list[nn.Linear]:
    """The linear layers of a StarCoder2 block: q, k, v, o, and the two of the MLP."""
    shapes = [(width, width), (width, width // 12), (width, width // 12), (width, width)]
    layers = [nn.Linear(*shape) for shape in [*shapes, (width, 4 * width), (4 * width, width)]]
    return [layer.requires_grad_(False) for layer in layers]  # noqa: FBT003


def seconds(layers: Sequence[nn.Linear], tokens: int) -> float:
    """CPU time of one pass through each layer and back."""
    inputs = [torch.randn(tokens, layer.in_features, requires_grad=True) for layer in layers]
    gradients = [torch.randn(tokens, layer.out_features) for layer in layers]
    began = time.process_time()
    for layer, x, gradient in zip(layers, inputs, gradients, strict=True):
        layer(x).backward(gradient)
    return time.process_time() - began


def stored(layers: Sequence[nn.Linear]) -> int:
    tensors = [tensor for layer in layers for tensor in layer.state_dict().values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024, help="hidden size of the block (StarCoder2-3B: 3072)")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    plain = block(options.width)
    exact = [Int8Linear.from_linear(layer) for layer in plain]
    seconds(plain, options.tokens), seconds(exact, options.tokens)
    ratios = [seconds(exact, options.tokens) / seconds(plain, options.tokens) for _ in range(options.rounds)]
    figures = {
        "width": options.width,
        "tokens": options.tokens,
        "threads": options.threads,
        "time_ratio_median": round(statistics.median(ratios), 3),
        "time_ratio_min": round(min(ratios), 3),
        "bytes_ratio": round(stored(exact) / stored(plain), 3),
        "torch": torch.__version__,
        "machine": platform.platform(),
    }
    print(json.dumps(figures, indent=2))
    results = Path(__file__).parent / "results" / "int8_linear.json"
    results.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
