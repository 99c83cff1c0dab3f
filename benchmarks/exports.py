"""Figure: whether exports say in other programs what base and adapter say here: greedy completions, compared.

Run as: python benchmarks/exports.py [--run OUT] [--llama-python PYTHON]
Without --run it first trains one: the demo's small model and settings on this repository (some minutes). Each side
completes the same prompts in a process of its own that knows nothing of repotune: plain transformers and PEFT, and
llama.cpp by the pip package xllamacpp (the Python that has it may be named; it says so where it is absent). The GGUF of
merged weights, and of the base in 16 bits, needs llama.cpp's converter (docs/export.md); without it they stay out.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from backends import models
from jobs.context import JobContext
from jobs.converter import NoConverter, convert, find_converter
from jobs.export import ExportRequest, export
from jobs.published import Published, open_published

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "benchmarks" / "results" / "exports.json"
NEW_TOKENS = 24
PROMPTS = (
    "def area(width: int, height: int) -> int:\n",
    "import json\nfrom pathlib import Path\n\n\ndef read_",
    '"""Packs rows of tokens',
    "class Order:\n    ",
    "    for name, value in sorted(",
    "    if not path.is_file():\n        raise ",
    "# Datasets\n\nWhat goes into the",
    "@dataclass(frozen=True)\nclass ",
)

TRANSFORMERS = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, transformers
job = json.loads(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(job["model"])
model = transformers.AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
if job["adapter"]:
    import peft
    model = peft.PeftModel.from_pretrained(model, job["adapter"])
model.eval()
found = []
for prompt in job["prompts"]:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(input_ids=ids, max_new_tokens=job["new"], min_new_tokens=job["new"], do_sample=False)
    found.append(tokenizer.decode(out[0][ids.shape[1]:]))
print(json.dumps(found))
"""

LLAMA_CPP = """
import json, sys
import xllamacpp
job = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = job["model"], 512, 1, False
if job["adapter"]:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = job["adapter"], 1.0
    params.lora_adapters = [adapter]
server = xllamacpp.Server(params)
asked = {"max_tokens": job["new"], "temperature": 0.0, "top_k": 1, "cache_prompt": False, "ignore_eos": True}
found = [server.handle_completions({"prompt": prompt, **asked})["choices"][0]["text"] for prompt in job["prompts"]]
print(json.dumps(found))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder that `repotune train` wrote, or an adapter")
    parser.add_argument("--llama-python", default=sys.executable, help="a Python that has xllamacpp")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or _trained(Path(folder))
        return _compare(open_published(run), Path(folder), arguments.llama_python)


def _trained(folder: Path) -> Path:
    script = ROOT / "examples" / "demo_model.py"
    found = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    common = ["--model", found.stdout.strip(), "--config", ROOT / "examples" / "demo.yaml"]
    repotune = Path(sys.executable).with_name("repotune")
    dataset, run = folder / "dataset", folder / "run"
    subprocess.run([repotune, "dataset", "--repo", ROOT, *common, "--output", dataset], check=True)
    subprocess.run([repotune, "train", "--device", "cpu", "--dataset", dataset, *common, "--output", run], check=True)
    return run


def _compare(adapter: Published, folder: Path, llama_python: str) -> int:
    base, out = models.model_folder(adapter.base, adapter.revision), folder / "export"
    context = JobContext(output=out, emit=print)
    converts = _has_converter()
    request = ExportRequest(adapter=adapter, base=adapter.base, merged=True, gguf_adapter=True, gguf_merged=converts)
    told = export(request, context)
    sides = _transformers(base, out) | _llama_cpp(adapter, out, folder, context, llama_python)
    peft = sides["transformers: base + adapter"]
    figures = {
        "prompts": len(PROMPTS),
        "new_tokens": NEW_TOKENS,
        "logits_difference_of_merged": told["logits_difference"],
        "against_base_and_adapter_in_transformers": {name: _alike(peft, said) for name, said in sides.items()},
        "completions": {name: said[0] for name, said in sides.items()},
        "versions": _versions(llama_python),
        "machine": platform.platform(),
    }
    print(json.dumps(figures, indent=2))
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return _verdict(figures["against_base_and_adapter_in_transformers"])


def _transformers(base: str, out: Path) -> dict[str, list[str]]:
    run = [sys.executable, "-W", "ignore", "-c", TRANSFORMERS]
    return {
        "transformers: base": _said(run, base),
        "transformers: base + adapter": _said(run, base, out / "adapter"),
        "transformers: merged": _said(run, out / "merged"),
    }


def _llama_cpp(adapter: Published, out: Path, folder: Path, context: JobContext, python: str) -> dict[str, list[str]]:
    if subprocess.run([python, "-c", "import xllamacpp"], check=False, capture_output=True).returncode:
        print("llama.cpp is left out: xllamacpp is not installed (pip install --group exports).")
        return {}
    run, file = [python, "-c", LLAMA_CPP], out / "adapter-f16.gguf"
    sides = {}
    if adapter.base.endswith(".gguf"):
        stored = Path(adapter.base).stem.rpartition(".")[2]
        sides[f"llama.cpp: base {stored}"] = _said(run, adapter.base)
        sides[f"llama.cpp: base {stored} + adapter"] = _said(run, adapter.base, file)
    if _has_converter():
        base = folder / "base-f16.gguf"
        convert(find_converter(), Path(models.model_folder(adapter.base, adapter.revision)), base, "f16", context)
        sides["llama.cpp: base f16"] = _said(run, base)
        sides["llama.cpp: base f16 + adapter"] = _said(run, base, file)
        sides["llama.cpp: merged f16"] = _said(run, out / "model-f16.gguf")
    return sides


def _has_converter() -> bool:
    try:
        find_converter()
    except NoConverter as error:
        print(error)
        return False
    return True


def _said(run: list[str], model: Path | str, adapter: Path | None = None) -> list[str]:
    """What one side completes the prompts with."""
    job = {"model": str(model), "adapter": str(adapter or ""), "prompts": PROMPTS, "new": NEW_TOKENS}
    done = subprocess.run(
        [*run, json.dumps(job)], check=True, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    said: list[str] = json.loads(done.stdout.splitlines()[-1])
    return said


def _alike(one: list[str], other: list[str]) -> dict[str, float]:
    """Prompts with the same completion, and the mean share of letters before the first that differs."""
    shares = [_beginning(a, b) / max(1, len(a)) for a, b in zip(one, other, strict=True)]
    same = sum(a == b for a, b in zip(one, other, strict=True))
    return {"same": same, "common_beginning": round(sum(shares) / len(shares), 3)}


def _beginning(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _versions(python: str) -> dict[str, str]:
    code = "from importlib.metadata import version; print(version('xllamacpp'))"
    found = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True)
    return {name: metadata.version(name) for name in ("torch", "transformers", "peft", "gguf")} | {
        "xllamacpp": found.stdout.strip() or "absent"
    }


def _verdict(alike: dict[str, dict[str, Any]]) -> int:
    """0 where merged weights say the same in transformers, and llama.cpp is nearer to the adapter than to its base."""
    exact = alike["transformers: merged"]["same"] == len(PROMPTS)
    moved = [
        alike[f"{name} + adapter"]["common_beginning"] > side["common_beginning"]
        for name, side in alike.items()
        if f"{name} + adapter" in alike
    ]
    return 0 if exact and all(moved) else 1


if __name__ == "__main__":
    raise SystemExit(main())
