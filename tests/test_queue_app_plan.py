"""A plan: what a submission would do, without doing it."""

import json
import struct
import subprocess

import pytest

from backends.devices import Device, tier_for_need
from jobs.config import load_config
from jobs.repository import RepositoryError
from queue_app.gguf_header import NotGguf, read_gguf_header
from queue_app.model_facts import find_model_facts
from queue_app.plan import Request, TooLarge, dataset_queue, make_plan, repository_name
from queue_app.plan_text import plan_as_json, plan_lines


def a_plan(repository, device="any", settings=(), **fields):
    return make_plan(Request(repository=str(repository), config=load_config(None, settings), device=device, **fields))


def text_of(plan, workers):
    return "\n".join(f"{label}: {text}" for label, text in plan_lines(plan, workers))


def commit(folder, text):
    """Commit a file with `text` in a repository of its own."""
    person = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    (folder / "a.txt").write_text(text, encoding="utf-8")
    for command in (["init", "-q"], ["add", "."], [*person, "commit", "-q", "-m", text]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def gguf_text(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def write_gguf(file, metadata, tensors=("token_embd.weight",)):
    """A .gguf file with a header and no weights; a list becomes an array of strings."""
    entries = b""
    for key, value in metadata.items():
        entries += gguf_text(key)
        if isinstance(value, list):
            entries += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(gguf_text, value))
        elif isinstance(value, str):
            entries += struct.pack("<I", 8) + gguf_text(value)
        else:
            entries += struct.pack("<II", 4, value)
    names = b"".join(gguf_text(name) + struct.pack("<IQQIQ", 2, 4, 4, 0, 0) for name in tensors)
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + entries + names)
    return file


LLAMA = {
    "general.architecture": "llama",
    "tokenizer.ggml.tokens": ["a", "b", "c"],
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 512,
}


def test_the_plan_names_commit_size_need_and_queues(tiny_repository):
    plan = a_plan(tiny_repository, "cpu")
    assert len(plan.source.commit) == 40
    assert plan.files == 13
    assert plan.size_bytes == sum(
        file.stat().st_size for file in tiny_repository.rglob("*.*") if ".git" not in file.parts
    )
    assert plan.need_bytes == plan.needs[0].total_bytes > 3 * 10**9
    assert plan.queue == f"cpu.{plan.tier}g"
    assert dataset_queue() == "any.2g"


def test_the_need_is_the_sum_of_its_parts(tiny_repository):
    (need,) = a_plan(tiny_repository, "cuda").needs
    assert sum(need.parts.values()) == need.total_bytes


def test_any_device_asks_for_the_tier_that_is_enough_on_each(tiny_repository):
    plan = a_plan(tiny_repository)
    assert [need.device for need in plan.needs] == list(Device)
    assert plan.tier == max(tier_for_need(need.total_bytes, need.device) for need in plan.needs)
    assert plan.queue == f"any.{plan.tier}g"


def test_the_section_of_a_device_counts(tiny_repository):
    nf4 = a_plan(tiny_repository, "cuda").need_bytes
    int8 = a_plan(tiny_repository, "cuda", ["cuda.quantization.kind=int8"]).need_bytes
    assert nf4 < int8


def test_a_training_that_fits_nowhere_is_refused(tiny_repository):
    huge = ["dataset.sequence_length=131072", 'training.gradient_checkpointing="off"']
    with pytest.raises(TooLarge, match=r"on cpu, more than .* offers: set training.gradient_checkpointing to auto"):
        a_plan(tiny_repository, "cpu", huge)


def test_an_unknown_model_takes_the_smallest_tier_and_says_so(tiny_repository, tmp_path):
    plan = a_plan(tiny_repository, "cpu", [f"model.name={tmp_path}"])
    assert plan.queue == "cpu.2g"
    assert plan.need_bytes == 0
    assert "has no config.json" in text_of(plan, [])
    assert "not known, so the smallest tier (2 GB) is asked for" in text_of(plan, [])


@pytest.mark.parametrize("config", ['{"hidden_size": 8}', '{"hidden_size": "wide", "num_attention_heads": 0}'])
def test_a_configuration_without_a_shape_is_not_a_defect(tiny_repository, tmp_path, config):
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    plan = a_plan(tiny_repository, "cpu", [f"model.name={tmp_path}"])
    assert plan.needs == ()
    assert "does not tell its shape" in text_of(plan, [])


def test_the_need_is_the_least_that_the_trainer_can_do_with(tiny_repository):
    one, many = (a_plan(tiny_repository, "cpu", [f"optimization.micro_batch={rows}"]) for rows in (1, 16))
    assert one.need_bytes == many.need_bytes
    assert a_plan(tiny_repository, "cpu", ["quantization.kind=int4"]).need_bytes < one.need_bytes


def test_a_plan_says_that_no_worker_is_there(tiny_repository):
    plan = a_plan(tiny_repository, "mps")
    assert "No worker is registered: start `device-worker --device mps`" in text_of(plan, [])
    assert plan_as_json(plan, [])["workers"] == []


def test_a_plan_without_a_broker_says_that_workers_are_not_known(tiny_repository):
    plan = a_plan(tiny_repository, "cpu")
    assert "workers: not known: the broker does not answer" in text_of(plan, None)
    assert plan_as_json(plan, None)["workers"] is None


def test_a_plan_as_json_is_json(tiny_repository):
    assert json.loads(json.dumps(plan_as_json(a_plan(tiny_repository), [])))["queue"].startswith("any.")


def test_a_url_is_pinned_but_not_measured(tiny_repository):
    plan = a_plan(tiny_repository.as_uri())
    assert plan.files is None
    assert "its size is not known here" in text_of(plan, [])


def test_a_ref_is_resolved(tmp_path):
    commit(tmp_path, "one")
    first = a_plan(tmp_path).source.commit
    commit(tmp_path, "two")
    assert a_plan(tmp_path, ref="HEAD~1").source.commit == first


def test_a_folder_that_is_no_repository_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match="not a git repository"):
        a_plan(tmp_path)


@pytest.mark.parametrize(
    ("repository", "name"),
    [
        ("https://example.org/a/the-block.git", "the-block"),
        ("git@example.org:a/the-block", "the-block"),
        ("git@example.org:the-block.git/", "the-block"),
    ],
)
def test_a_job_is_named_after_its_repository(repository, name):
    assert repository_name(repository) == name


def test_the_working_folder_lends_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert repository_name(".") == tmp_path.name


def test_a_folder_tells_its_shape(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 8}', encoding="utf-8")
    facts = find_model_facts(str(tmp_path))
    assert facts.config == {"hidden_size": 8}
    assert facts.is_path


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_config_json_is_told(tmp_path, content):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    facts = find_model_facts(str(tmp_path))
    assert facts.config is None
    assert "config.json" in facts.problem


def test_the_default_model_needs_no_network(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", pytest.fail)
    assert find_model_facts("bigcode/starcoder2-3b").config["num_hidden_layers"] == 30


def test_a_hub_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    facts = find_model_facts("some/model")
    assert facts.config is None
    assert "the hub gave no config.json for some/model" in facts.problem


def test_a_missing_path_is_not_taken_for_a_hub_id():
    assert find_model_facts("./nowhere").problem == "there is no file or folder ./nowhere on this machine"


def test_a_gguf_file_tells_its_shape(tmp_path):
    facts = find_model_facts(str(write_gguf(tmp_path / "m.gguf", LLAMA)))
    assert facts.config["model_type"] == "llama"
    assert facts.config["vocab_size"] == 3
    assert facts.config["hidden_size"] == 64
    assert facts.config["tie_word_embeddings"] is True


def test_a_gguf_file_with_an_output_matrix_is_not_tied(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", LLAMA, ("token_embd.weight", "output.weight"))
    assert find_model_facts(str(file)).config["tie_word_embeddings"] is False


def test_a_gguf_file_that_lacks_a_number_is_told(tmp_path):
    metadata = {key: value for key, value in LLAMA.items() if key != "llama.block_count"}
    facts = find_model_facts(str(write_gguf(tmp_path / "m.gguf", metadata)))
    assert "lacks num_hidden_layers" in facts.problem


@pytest.mark.parametrize("length", [0, 3, 4, 10, 30, 100])
def test_a_cut_gguf_file_is_refused(tmp_path, length):
    whole = write_gguf(tmp_path / "m.gguf", LLAMA).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:length])
    with pytest.raises(NotGguf):
        read_gguf_header(tmp_path / "cut.gguf")
    assert "not a readable .gguf file" in find_model_facts(str(tmp_path / "cut.gguf")).problem
