"""Figure: text to ids, beside the libraries that others use, with the ids of every document compared.

Run as: python benchmarks/tokenising.py --tokenizer FOLDER [--megabytes 20] [--rounds 3]

The text is Python's own standard library, which is on every machine: real code, in documents of one file each. Every
engine and round is a process of its own (some keep what they have seen), in turn, so that another process on the
machine slows all of them. CPU seconds are of all threads. `ours` is jobs.dataset.tokens.Vocabulary, its comparisons
with the reference included; `tokenizers` and `fastokens` are the bare libraries; `transformers` is what most
scripts call. The bar: at least 7 MB per CPU second, and no document whose ids differ from the reference's.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

BAR_MB_PER_CPU_SECOND = 7.0
ENGINES = ("ours", "fastokens", "tokenizers", "transformers")
MB = 1_000_000
#: Of each batch: what a build hands over at once.
BATCH_CHARACTERS = 2_000_000
SPECIALS = ("<|endoftext|>", "<fim_", "<file_sep>", "<repo_name>", "<EMAIL>", "<KEY>", "<PASSWORD>", "<issue_", "<pr")


def _demo_model() -> str:
    script = Path(__file__).resolve().parent.parent / "examples" / "demo_model.py"
    return subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer.json; by default the demo model's")
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--child", nargs=2, metavar=("ENGINE", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tokenizer is None:
        from backends.models import tokenizer_folder

        model = _demo_model()
        options.tokenizer, options.told = tokenizer_folder(model), Path(model).stem
    else:
        options.told = options.tokenizer.resolve().name.removesuffix("-tokenizer")
    if options.child:
        print(json.dumps(measured(options.child[0], options.tokenizer, Path(options.child[1]))))
        return 0
    with tempfile.TemporaryDirectory(prefix="repotune-tokenising-") as folder:
        corpus = Path(folder) / "corpus.json"
        documents = list(texts(options.megabytes * MB))
        corpus.write_text(json.dumps(documents), encoding="utf-8")
        runs = [run(engine, options.tokenizer, corpus) for _ in range(options.rounds) for engine in options.engines]
    figures = summary(runs, documents, options)
    print(json.dumps(figures, indent=2))
    (Path(__file__).parent / "results" / "tokenising.json").write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def texts(size: float) -> Iterator[str]:
    """Files of the standard library, until `size` bytes are there.

    Those that spell special tokens are left out: there a dataset differs from the bare libraries on purpose.
    """
    total = 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"), key=_shuffled):
        try:
            text = file.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if not text or any(letters in text for letters in SPECIALS):
            continue
        yield text
        total += len(text.encode())
        if total >= size:
            return


def _shuffled(file: Path) -> str:
    return hashlib.sha256(file.name.encode()).hexdigest()


def run(engine: str, tokenizer: Path, corpus: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--tokenizer", str(tokenizer), "--child", engine, str(corpus)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(engine: str, folder: Path, corpus: Path) -> dict[str, Any]:
    """Seconds and a digest of every document's ids, in this process."""
    documents = json.loads(corpus.read_text(encoding="utf-8"))
    start = time.perf_counter(), time.process_time()
    encode, name = OPENERS[engine](folder)
    opened = time.perf_counter(), time.process_time()
    digests = []
    spent = [0.0, 0.0]
    for batch in batches(documents):
        before = time.perf_counter(), time.process_time()
        found = encode(batch)
        spent = [spent[0] + time.perf_counter() - before[0], spent[1] + time.process_time() - before[1]]
        digests += [digest(ids) for ids in found]
    return {
        "engine": engine,
        "name": name(),
        "open_seconds": opened[0] - start[0],
        "open_cpu_seconds": opened[1] - start[1],
        "seconds": spent[0],
        "cpu_seconds": spent[1],
        "digests": digests,
    }


def batches(documents: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for document in documents:
        batch.append(document)
        if sum(map(len, batch)) >= BATCH_CHARACTERS:
            yield batch
            batch = []
    if batch:
        yield batch


def digest(ids: Any) -> str:
    import numpy as np

    return hashlib.blake2b(np.asarray(ids, np.uint32).tobytes(), digest_size=8).hexdigest()


Opened = tuple[Callable[[list[str]], Any], Callable[[], str]]


def open_ours(folder: Path) -> Opened:
    from jobs.dataset.engines import UNEXPECTED_CHARACTERS
    from jobs.dataset.tokens import Vocabulary

    vocabulary = Vocabulary.of_folder(folder)
    # More than the reference does alone: the fast engine is opened now and not while seconds are counted.
    vocabulary.encode(["x = 1\n" * (UNEXPECTED_CHARACTERS // 6 + 1)])
    return vocabulary.encode, lambda: vocabulary.engine


def open_fastokens(folder: Path) -> Opened:
    import numpy as np
    from fastokens import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(batch: list[str]) -> list[Any]:
        ids, starts = tokenizer.encode_batch_flat(batch, add_special_tokens=False)
        ids, starts = np.frombuffer(ids, "<u4"), np.frombuffer(starts, "<u8")
        return [ids[int(starts[place]) : int(starts[place + 1])] for place in range(len(batch))]

    return encode, lambda: f"fastokens {version('fastokens')}"


def open_tokenizers(folder: Path) -> Opened:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def encode(batch: list[str]) -> list[Any]:
        return [encoding.ids for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)]

    return encode, lambda: f"tokenizers {version('tokenizers')}"


def open_transformers(folder: Path) -> Opened:
    from backends.models import load_tokenizer

    tokenizer = load_tokenizer(str(folder))
    tokenizer.model_max_length = 10**12

    def encode(batch: list[str]) -> list[Any]:
        return tokenizer(batch, add_special_tokens=False, return_attention_mask=False)["input_ids"]

    return encode, lambda: f"transformers {version('transformers')}"


OPENERS = {
    "ours": open_ours,
    "fastokens": open_fastokens,
    "tokenizers": open_tokenizers,
    "transformers": open_transformers,
}


def summary(runs: Sequence[dict[str, Any]], documents: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    size = sum(len(document.encode()) for document in documents)
    reference = next((one["digests"] for one in runs if one["engine"] == "tokenizers"), None)
    figures = {engine: rates([one for one in runs if one["engine"] == engine], size) for engine in options.engines}
    for engine, figure in figures.items():
        told = next(one["digests"] for one in runs if one["engine"] == engine)
        if reference is not None:
            figure["documents_that_differ"] = sum(a != b for a, b in zip(told, reference, strict=True))
    ours = figures.get("ours", {})
    met = ours.get("median_mb_per_cpu_second", 0) >= BAR_MB_PER_CPU_SECOND and not ours.get("documents_that_differ")
    return {
        "rounds": options.rounds,
        "documents": len(documents),
        "megabytes": round(size / MB, 2),
        "tokenizer": options.told,
        "bar_mb_per_cpu_second": BAR_MB_PER_CPU_SECOND,
        "bar_met": bool(met),
        "figures": figures,
        "machine": f"{platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {name: installed(name) for name in ("repotune", "fastokens", "tokenizers", "transformers")},
    }


def rates(runs: Sequence[dict[str, Any]], size: int) -> dict[str, Any]:
    wall = [size / MB / one["seconds"] for one in runs]
    processor = [size / MB / one["cpu_seconds"] for one in runs]
    return {
        "name": runs[-1]["name"],
        "median_mb_per_second": round(statistics.median(wall), 2),
        "median_mb_per_cpu_second": round(statistics.median(processor), 2),
        "best_mb_per_cpu_second": round(max(processor), 2),
        "median_open_seconds": round(statistics.median(one["open_seconds"] for one in runs), 3),
        "median_open_cpu_seconds": round(statistics.median(one["open_cpu_seconds"] for one in runs), 3),
    }


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
