"""What quantising changes: the norm of the difference over that of the weight, by scheme and distribution.

Run as: python benchmarks/weight_error.py [--rows 4096] [--columns 3072]

No time is measured, so that a busy machine changes nothing. nf4 is bitsandbytes', where it is installed.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from backends.int8.layer import layer_class

#: The most that int8 in groups of 128 may change gaussian weights.
BAR = 0.0066
_SCALE = 0.02  # of a weight in a trained model; the figures do not depend on it
_DEGREES = 5.0  # of freedom of Student's t: tails as heavy as in trained models
_OUTLIERS, _TIMES = 0.001, 8.0


def distributions(rows: int, columns: int) -> dict[str, torch.Tensor]:
    """Weights [rows, columns] as trained ones may lie."""
    gaussian = torch.randn(rows, columns)
    outliers = torch.where(torch.rand(rows, columns) < _OUTLIERS, gaussian * _TIMES, gaussian)
    student = torch.distributions.StudentT(_DEGREES).sample((rows, columns))
    return {
        "gaussian": gaussian * _SCALE,
        "student-t(5)": student * _SCALE,
        "0.1 % outliers x8": outliers * _SCALE,
    }


def own(bits: int, group_size: int | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Quantise and dequantise by a layer of ours."""

    def through(weight: torch.Tensor) -> torch.Tensor:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        return layer_class(bits).from_linear(linear, group_size=group_size).dequantize()

    return through


def nf4(weight: torch.Tensor) -> torch.Tensor:
    """Quantise and dequantise by bitsandbytes, blocks of 64, the scales quantised too."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    return dequantize_4bit(codes, state)


def schemes() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Ways to hold a weight, by name."""
    ways = {f"int8 group {size}": own(8, size) for size in (32, 64, 128, 256)}
    ways |= {"int8 row": own(8, None), "int4 group 64": own(4, 64)}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        return ways
    return ways | {"nf4 double quant": nf4}


def installed(package: str) -> str | None:
    """The version of a package, None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=3072)
    options = parser.parse_args()
    torch.manual_seed(1)
    weights = distributions(options.rows, options.columns)
    errors = {
        scheme: {
            name: round(float((through(weight) - weight).norm() / weight.norm()), 5) for name, weight in weights.items()
        }
        for scheme, through in schemes().items()
    }
    met = errors["int8 group 128"]["gaussian"] <= BAR
    figures = {
        "command": f"python benchmarks/weight_error.py --rows {options.rows} --columns {options.columns}",
        "relative_error": errors,
        "bar": {"int8 group 128, gaussian": BAR, "met": met},
        "torch": torch.__version__,
        "bitsandbytes": installed("bitsandbytes"),
        "python": platform.python_version(),
        "machine": platform.platform(),
    }
    print(json.dumps(figures, indent=2))
    results = Path(__file__).parent / "results" / "weight_error.json"
    results.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(0 if met else 1)


if __name__ == "__main__":
    main()
