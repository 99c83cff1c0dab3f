"""Peak anonymous memory and time of loading a sharded bf16 checkpoint: int8, int4, plain, bitsandbytes nf4.

Run as: python benchmarks/loading.py [--layers 4] [--hidden 2048] [--rounds 3]

Makes a checkpoint with StarCoder2's shapes, then loads it in a fresh process per variant and round, in turn. Anonymous
memory is what the process cannot give back without swap; pages of the mapped checkpoint are not counted, the kernel may
drop them. It is read from /proc from outside, every millisecond, as growth over the same process after its imports.

`transient_over_largest` is (peak - what the process holds once loaded) / the checkpoint's largest tensor;
`peak_minus_final_over_largest` is (peak - bytes of all tensors) / the same: the bar is 1.3.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

VARIANTS = ("int8-bf16", "int8-fp32", "int8-row-bf16", "int4-bf16", "plain-bf16", "plain-fp32", "nf4-bf16")
MIB = 2**20
SAMPLE_SECONDS = 0.001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--stored", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--child", nargs=2, metavar=("VARIANT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        load_as(*options.child)
        return
    if not Path("/proc/self/status").exists():
        sys.exit("This measurement reads /proc: run it on Linux.")
    with tempfile.TemporaryDirectory(prefix="repotune-loading-") as folder:
        subprocess.run([sys.executable, "-c", MAKE, folder, json.dumps(vars(options))], check=True)
        figures = measure(options, Path(folder))
    print(json.dumps(figures, indent=2))
    results = Path(__file__).parent / "results" / "loading.json"
    results.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


#: Run in a process of its own, whose memory is gone when the measurements begin.
MAKE = """
import json, sys, torch
from transformers import Starcoder2Config, Starcoder2ForCausalLM
folder, options = sys.argv[1], json.loads(sys.argv[2])
hidden, heads = options["hidden"], options["hidden"] // 128
config = Starcoder2Config(
    vocab_size=options["vocabulary"], hidden_size=hidden, intermediate_size=4 * hidden,
    num_hidden_layers=options["layers"], num_attention_heads=heads, num_key_value_heads=2,
    bos_token_id=0, eos_token_id=0, tie_word_embeddings=True,
)
torch.manual_seed(17)
with torch.device("meta"):
    model = Starcoder2ForCausalLM(config)
model.to(getattr(torch, options["stored"])).to_empty(device="cpu").tie_weights()
for parameter in model.parameters():
    parameter.data.copy_(torch.randn(parameter.shape).mul_(0.02))
model.save_pretrained(folder, max_shard_size="100MB")
"""


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    busy = os.getloadavg()[0]
    sizes = tensor_bytes(folder)
    largest = max(sizes.values())
    rounds: dict[str, list[dict[str, float]]] = {variant: [] for variant in options.variants}
    for _ in range(options.rounds):
        for variant in options.variants:
            rounds[variant].append(one_load(variant, folder))
    return {
        "command": "python benchmarks/loading.py " + " ".join(sys.argv[1:]),
        "checkpoint_mib": round(sum(sizes.values()) / MIB, 1),
        "shards": len(list(folder.glob("*.safetensors"))),
        "stored": options.stored,
        "largest_tensor_mib": round(largest / MIB, 1),
        "rounds": options.rounds,
        # Memory is the same on a busy machine, seconds are not.
        "load_average_before": round(busy, 2),
        "variants": {variant: summary(loads, largest / MIB) for variant, loads in rounds.items()},
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors", "bitsandbytes")},
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
    }


def tensor_bytes(folder: Path) -> dict[str, int]:
    """Bytes of each tensor, from the headers of the shards."""
    sizes = {}
    for shard in folder.glob("*.safetensors"):
        with shard.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            sizes[name] = end - begin
    return sizes


def summary(loads: list[dict[str, float]], largest: float) -> dict[str, float]:
    peak = max(load["peak_mib"] for load in loads)
    final = loads[0]["final_mib"]
    settled = statistics.median(load["settled_mib"] for load in loads)
    seconds = [load["seconds"] for load in loads]
    return {
        "peak_anonymous_mib": round(peak, 1),
        "settled_anonymous_mib": round(settled, 1),
        "final_tensors_mib": round(final, 1),
        "peak_minus_final_over_largest": round((peak - final) / largest, 3),
        "transient_over_largest": round(max(load["peak_mib"] - load["settled_mib"] for load in loads) / largest, 3),
        "seconds_min": round(min(seconds), 3),
        "seconds_median": round(statistics.median(seconds), 3),
        "cpu_seconds_median": round(statistics.median(load["cpu_seconds"] for load in loads), 3),
    }


def one_load(variant: str, folder: Path) -> dict[str, float]:
    """Load in a fresh process and watch it from outside, where no lock of the interpreter delays the reading."""
    command = [sys.executable, __file__, "--child", variant, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        baseline = peak = anonymous_mib(child.pid)
        os.set_blocking(child.stdout.fileno(), False)
        child.stdin.write("go\n")
        child.stdin.flush()
        while not (answer := child.stdout.readline()):
            assert child.poll() is None, f"{variant} failed"
            peak = max(peak, anonymous_mib(child.pid))
            time.sleep(SAMPLE_SECONDS)
        settled = anonymous_mib(child.pid)
        child.stdin.close()
    return json.loads(answer) | {"peak_mib": max(peak, settled) - baseline, "settled_mib": settled - baseline}


def anonymous_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return 0.0  # between its last line and its end a process has no memory


def load_as(variant: str, folder: str) -> None:
    """In the child: import, say so, wait, load, tell."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.starcoder2 import modeling_starcoder2  # noqa: F401 - part of the baseline
    from transformers.utils import logging

    logging.disable_progress_bar()
    arguments = arguments_of(variant)
    print("ready", flush=True)
    sys.stdin.readline()
    began, began_cpu = time.perf_counter(), time.process_time()
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}, **arguments)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]}
    # What holds nf4's scales is no parameter.
    states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    extra = sum(tensor.nbytes for state in states if state for tensor in tensors_of(state, torch.Tensor))
    answer = {"seconds": seconds, "cpu_seconds": cpu_seconds, "final_mib": (sum(tensors.values()) + extra) / MIB}
    print(json.dumps(answer), flush=True)
    sys.stdin.read()


def tensors_of(state: Any, kind: type) -> list[Any]:
    own = [value for value in vars(state).values() if isinstance(value, kind)]
    return own + (tensors_of(state.state2, kind) if getattr(state, "state2", None) else [])


def arguments_of(variant: str) -> dict[str, Any]:
    import torch
    from transformers import BitsAndBytesConfig

    from backends.int8 import Int8Config

    dtype = torch.float32 if variant.endswith("fp32") else torch.bfloat16
    kind = variant.rpartition("-")[0]
    configs = {
        "plain": lambda: None,
        "int8": Int8Config,
        "int8-row": lambda: Int8Config(group_size=None),
        "int4": lambda: Int8Config(bits=4),
        "nf4": lambda: BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    }
    if kind == "nf4":
        import bitsandbytes  # noqa: F401 - part of the baseline
    return {"dtype": dtype, "quantization_config": configs[kind]()}


if __name__ == "__main__":
    main()
