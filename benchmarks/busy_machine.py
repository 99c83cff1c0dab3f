"""Figure: what training costs on a machine that does something else as well, by how OpenMP's threads wait.

Run as: python benchmarks/busy_machine.py
Forward and backward of 256 tokens through four int8 decoder layers of width 1024, on an idle machine and beside a busy
process per core. Variants: the library's default (threads spin), GOMP_SPINCOUNT=1000 (what `workers.run` sets), and
OMP_WAIT_POLICY=PASSIVE (threads sleep at once). Wall and CPU seconds, minimum and median of five rounds.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {"default": {}, "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"}, "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"}}
ROUNDS = 5


def main() -> None:
    """Measure every variant on an idle and on a busy machine."""
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(_measure()))
        return
    idle = {name: _round(variables) for name, variables in VARIANTS.items()}
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        busy = {name: _round(variables) for name, variables in VARIANTS.items()}
    finally:
        for burner in burners:
            burner.kill()
    figures = {"idle": idle, "busy": busy, "cores": os.cpu_count(), "machine": platform.platform()}
    print(json.dumps(figures, indent=2))
    (ROOT / "benchmarks" / "results" / "busy_machine.json").write_text(json.dumps(figures, indent=2) + "\n")


def _round(variables: dict[str, str]) -> dict[str, float]:
    environment = os.environ | variables
    done = subprocess.run(
        [sys.executable, __file__, "--measure"], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _measure() -> dict[str, float]:
    import time

    import torch
    from transformers import AutoModelForCausalLM, Starcoder2Config

    from backends.int8 import Int8Linear

    config = Starcoder2Config(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=1024,
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and name != "lm_head":
            model.set_submodule(name, Int8Linear.from_linear(module))
    ids = torch.randint(0, 1024, (1, 256))
    wall, cpu = [], []
    for _ in range(ROUNDS + 1):
        began, began_cpu = time.perf_counter(), time.process_time()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        wall.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    return {
        "wall_min": round(min(wall[1:]), 3),
        "wall_median": round(statistics.median(wall[1:]), 3),
        "cpu_min": round(min(cpu[1:]), 3),
        "cpu_median": round(statistics.median(cpu[1:]), 3),
    }


if __name__ == "__main__":
    main()
