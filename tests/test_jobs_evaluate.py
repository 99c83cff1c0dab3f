"""Base and adapter side by side, on a dataset with a past and a future, and what keeps them from being compared."""

import json
import math
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Starcoder2Config, Starcoder2ForCausalLM

import jobs.evaluate
from backends.adapters import attach
from backends.contract import AdapterRequest
from backends.devices import Device
from backends.errors import ModelNotLoadable
from backends.full import FullPrecision
from jobs import shards
from jobs.adapter import save_adapter
from jobs.adapter_evaluation import evaluate
from jobs.bootstrap import FEWEST
from jobs.context import JobContext, StopRequested
from jobs.dataset.build import build_dataset
from jobs.documents import read_pieces
from jobs.evaluate import done_sentence, write_evaluation
from jobs.evaluation import NoHeldOutRows
from jobs.events import Evaluated, Note, Scores
from jobs.loss import NextTokenLoss, make_batch
from jobs.published import NoAdapter, open_published
from jobs.repository import resolve
from jobs.shards import DatasetError, open_dataset
from jobs.spec import Config, Source
from jobs.time_limit import TimeLimit, evaluation_seconds

torch.set_num_threads(1)

CPU = torch.device("cpu")


def module(number):
    body = "(width, height):\n    depth = width + height\n    return width * height * depth\n\n\n"
    functions = [f"def volume_{number}_{side}{body}" for side in range(4)]
    return f'"""Solids, part {number}."""\n\n\n' + "".join(functions)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_repository, tiny_tokenizer):
    """Twelve modules, then ten commits that add one each; a part of the last ones is the future."""
    folder = tmp_path_factory.mktemp("evaluated")
    repository = shutil.copytree(tiny_repository, folder / "repository")
    for number in range(10):
        (repository / "package" / f"solid_{number}.py").write_text(module(number), encoding="utf-8")
        for command in (
            ["add", "."],
            ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", f"Add {number}"],
        ):
            subprocess.run(["git", *command], cwd=repository, check=True)
    resolved = resolve(str(repository), None)
    source = Source(repository="tiny", commit=resolved.commit, since=None, bundle=None)
    config = Config.model_validate({"dataset": {"sequence_length": 128, "held_out": 0.2, "future": 0.3}})
    build_dataset(resolved.git_dir, source, config, tiny_tokenizer, JobContext(output=folder / "dataset", emit=print))
    return folder / "dataset"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model_folder):
    """An adapter that changes what the model says."""
    model = attach(AutoModelForCausalLM.from_pretrained(tiny_model_folder), AdapterRequest(rank=4, alpha=32), seed=17)
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    save_adapter(model, folder, config_of(tiny_model_folder))
    return folder


def config_of(model, **evaluation):
    values = {"prompts": 6, "new_tokens": 24, "resamples": 200} | evaluation
    return Config.model_validate(
        {"model": {"name": str(model)}, "quantization": {"kind": "none"}, "evaluation": values}
    )


class Listener:
    def __init__(self, tmp_path, *, should_stop=lambda: False):
        self.events = []
        self.context = JobContext(output=tmp_path, emit=self.events.append, should_stop=should_stop)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def run(config, dataset, adapter, listener):
    known = adapter and open_published(adapter)
    return evaluate(config, dataset, known, FullPrecision(), Device.CPU, listener.context)


@pytest.fixture(scope="module")
def found(dataset, adapter, tiny_model_folder, tmp_path_factory):
    listener = Listener(tmp_path_factory.mktemp("output"))
    return run(config_of(tiny_model_folder), dataset, adapter, listener), listener


def plain_losses(model, dataset, split):
    """Nats and tokens by file, one document at a time, from the model's own logits."""
    rows, sums = open_dataset(dataset).split(split), {}
    for piece in read_pieces(dataset)[split]:
        row = rows[piece.row]
        ids = torch.from_numpy(row.ids[piece.span])
        measured = np.flatnonzero(row.flags[piece.span] & shards.LABEL)
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0].double()
        losses = torch.nn.functional.cross_entropy(logits[measured - 1], ids[measured], reduction="sum")
        of_file = sums.setdefault(piece.path, [0.0, 0])
        of_file[0] += float(losses)
        of_file[1] += len(measured)
    return sums


@pytest.mark.parametrize("split", ["held_out", "future"])
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_losses_are_those_of_plain_peft_on_each_document_alone(found, dataset, adapter, tiny_model_folder, split):
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    scores = found[0]["splits"][split]
    for side in ("base", "adapter"):
        model = base if side == "base" else PeftModel.from_pretrained(base, adapter).eval()
        sums = plain_losses(model, dataset, split)
        nats, tokens = (sum(part) for part in zip(*sums.values(), strict=True))
        assert (scores["documents"], scores["tokens"]) == (len(sums), tokens)
        assert scores[side]["loss"] == pytest.approx(nats / tokens, abs=1e-5)
        assert scores[side]["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
        assert scores[side]["bits_per_byte"] == pytest.approx(nats / math.log(2) / scores["bytes"], abs=1e-5)
    difference = scores["difference"]["loss"]
    assert difference["mean"] == pytest.approx(scores["adapter"]["loss"] - scores["base"]["loss"], abs=2e-6)
    assert scores["documents"] < FEWEST
    assert (difference["low"], difference["high"]) == (None, None)


def test_bytes_are_those_of_the_measured_text(found, dataset):
    measured = 0
    for piece in read_pieces(dataset)["held_out"]:
        row = open_dataset(dataset).held_out[piece.row]
        ids = row.ids[piece.span][(row.flags[piece.span] & shards.LABEL) > 0]
        text = AutoTokenizer.from_pretrained(found[0]["base"]["model"]).decode(ids, skip_special_tokens=True)
        measured += len(text.encode())
    assert found[0]["splits"]["held_out"]["bytes"] == measured


def test_completions_and_samples_are_of_both_splits(found):
    result = found[0]
    assert result["bounds"]["done"]
    # Places, each with a next line and, where something follows it, a middle.
    assert 6 < result["bounds"]["completions"]["done"] <= 12
    assert {sample["split"] for sample in result["samples"]} == {"future", "held_out"}
    assert len(result["samples"]) == 6
    for sample in result["samples"]:
        assert {"path", "prompt_tail", "truth", "base", "adapter"} <= set(sample)
        assert sample["truth"]
    for split in result["splits"].values():
        assert 0 <= split["adapter"]["fim_similarity"] <= 1
        assert split["adapter"]["next_line_exact"] is not None
        assert set(split["languages"]) <= {"Python", "Markdown"}


def test_the_same_model_and_dataset_give_the_same_bytes(found, dataset, adapter, tiny_model_folder, tmp_path):
    again = run(config_of(tiny_model_folder), dataset, adapter, Listener(tmp_path))
    files = [write_evaluation(tmp_path / name, one) for name, one in (("a", found[0]), ("b", again))]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert json.loads(files[0].read_text())["format"] == 1


def test_a_listener_hears_scores_of_both(found):
    result, listener = found
    assert {event.split for event in listener.of(Scores)} == {"future", "held_out"}
    assert not listener.of(Evaluated)  # nobody knows the adapter's step
    assert done_sentence(result["bounds"]) in [note.message for note in listener.of(Note)]


def test_at_the_end_of_a_training_a_listener_hears_the_loss_of_newer_commits_at_its_step(found, tmp_path):
    result, listener = found[0], Listener(tmp_path)
    jobs.evaluate._tell(result, SimpleNamespace(step=7, sides=("base", "adapter")), listener.context)
    (event,) = listener.of(Evaluated)
    assert (event.split, event.step) == ("future", 7)
    assert event.loss == result["splits"]["future"]["adapter"]["loss"]


def test_a_base_alone_is_measured(found, dataset, tiny_model_folder, tmp_path):
    result = run(config_of(tiny_model_folder), dataset, None, Listener(tmp_path))
    assert result["adapter"] is None
    for split, scores in result["splits"].items():
        assert scores["base"] == found[0]["splits"][split]["base"]
        assert "adapter" not in scores
    assert all("adapter" not in sample for sample in result["samples"])


def test_time_that_is_over_leaves_a_row_of_each_split_and_says_so(dataset, adapter, tiny_model_folder, tmp_path):
    result = run(config_of(tiny_model_folder, minutes=1e-9), dataset, adapter, Listener(tmp_path))
    assert [rows["done"] for rows in result["bounds"]["rows"].values()] == [1, 1]
    assert result["bounds"]["completions"]["done"] == 0
    assert result["bounds"]["done"] is False
    assert "1 of " in done_sentence(result["bounds"])
    assert "0 s that evaluation may take were over" in done_sentence(result["bounds"])
    assert result["splits"]["future"]["adapter"]["loss"] > 0
    assert result["splits"]["future"]["adapter"]["next_line_exact"] is None


def test_one_who_is_asked_to_leave_leaves(dataset, adapter, tiny_model_folder, tmp_path):
    with pytest.raises(StopRequested):
        run(config_of(tiny_model_folder), dataset, adapter, Listener(tmp_path, should_stop=lambda: True))


def test_losses_of_tokens_stand_where_the_tokens_stand(tiny_model_folder, dataset):
    model = attach(AutoModelForCausalLM.from_pretrained(tiny_model_folder), AdapterRequest(rank=4, alpha=8), seed=17)
    loss = NextTokenLoss.of(model.eval(), CPU)
    rows = [open_dataset(dataset).train[number] for number in range(2)]
    batch = make_batch(rows, CPU)
    for one in (loss, NextTokenLoss(model, shape=None)):
        each = one.by_token(batch)
        assert each.shape == batch.ids.shape
        with torch.no_grad():
            assert float(each.sum()) == pytest.approx(float(one(batch)), rel=1e-5)
        labelled = batch.labels != shards.IGNORED
        labelled[:, 0] = False
        assert torch.equal(each > 0, labelled)


# ---- Bad input -------------------------------------------------------------------------------------------------------


def copy_of(dataset, tmp_path):
    return shutil.copytree(dataset, tmp_path / "dataset")


def test_a_dataset_of_another_tokenizer_is_refused(dataset, tiny_model_folder, tmp_path):
    folder = copy_of(dataset, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tokenizer"]["sha256"] = "0" * 64
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelNotLoadable, match="built with another tokenizer than that of"):
        run(config_of(tiny_model_folder), folder, None, Listener(tmp_path))


def emptied(dataset, tmp_path, *splits):
    folder = copy_of(dataset, tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    for split in splits:
        shutil.rmtree(folder / split)
        manifest["splits"][split]["rows"] = 0
        manifest["files"] = {name: about for name, about in manifest["files"].items() if not name.startswith(split)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_dataset_without_newer_commits_is_measured_on_held_out_files(dataset, tiny_model_folder, tmp_path):
    result = run(config_of(tiny_model_folder), emptied(dataset, tmp_path, "future"), None, Listener(tmp_path))
    assert set(result["splits"]) == {"held_out"}


def test_a_dataset_with_nothing_to_measure_on_is_refused(dataset, tiny_model_folder, tmp_path):
    folder = emptied(dataset, tmp_path, "future", "held_out")
    with pytest.raises(NoHeldOutRows, match=r"raise dataset\.held_out and build it again"):
        run(config_of(tiny_model_folder), folder, None, Listener(tmp_path))


def test_a_shard_that_was_altered_is_named(dataset, tiny_model_folder, tmp_path):
    folder = copy_of(dataset, tmp_path)
    shard = folder / "held_out" / "00000.ids"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(DatasetError, match=r"held_out/00000\.ids was altered"):
        run(config_of(tiny_model_folder), folder, None, Listener(tmp_path))


def test_a_missing_table_of_samples_is_named(dataset, tiny_model_folder, tmp_path):
    folder = copy_of(dataset, tmp_path)
    (folder / "samples.parquet").unlink()
    with pytest.raises(DatasetError, match=r"samples\.parquet is missing"):
        run(config_of(tiny_model_folder), folder, None, Listener(tmp_path))


def other_model(tiny_model_folder, folder, **changes):
    """Another base with the same tokenizer."""
    shutil.copytree(tiny_model_folder, folder)
    config = Starcoder2Config.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    Starcoder2ForCausalLM(config).save_pretrained(folder)
    return folder


def test_an_adapter_of_a_deeper_base_is_refused(dataset, adapter, tiny_model_folder, tmp_path):
    other = other_model(tiny_model_folder, tmp_path / "other", num_hidden_layers=1)
    with pytest.raises(NoAdapter, match="trained on another base"):
        run(config_of(other), dataset, adapter, Listener(tmp_path))


def test_an_adapter_of_a_wider_base_is_refused(dataset, adapter, tiny_model_folder, tmp_path):
    other = other_model(tiny_model_folder, tmp_path / "other", intermediate_size=128)
    with pytest.raises(
        ModelNotLoadable, match=r"does not fit this model \(size mismatch for .*trained on another base"
    ):
        run(config_of(other), dataset, adapter, Listener(tmp_path))


def test_a_base_by_another_name_is_measured_with_a_warning(dataset, adapter, tiny_model_folder, tmp_path):
    moved = shutil.copytree(tiny_model_folder, tmp_path / "moved")
    listener = Listener(tmp_path)
    run(config_of(moved, prompts=0), dataset, adapter, listener)
    assert any("names another base" in note.message for note in listener.of(Note) if note.level == "warning")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_part_of_the_adapter_that_is_missing_is_named(dataset, adapter, tiny_model_folder, tmp_path, name):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    (folder / name).unlink()
    with pytest.raises(NoAdapter, match=f"no {name}"):
        run(config_of(tiny_model_folder), dataset, folder, Listener(tmp_path))


# ---- Bounds ----------------------------------------------------------------------------------------------------------


def test_a_training_is_evaluated_for_a_tenth_of_its_time_at_most():
    assert evaluation_seconds(3600, 10) == 360
    assert evaluation_seconds(36000, 10) == 600
    assert evaluation_seconds(10, 10) == 15
    assert evaluation_seconds(10, 0.1) == 6


def test_a_time_limit_counts_from_its_beginning(monkeypatch):
    now = [5.0]
    monkeypatch.setattr("jobs.time_limit.time.monotonic", lambda: now[0])
    limit = TimeLimit(10)
    now[0] = 12.0
    assert limit.is_over(0.6)
    assert not limit.is_over()
    now[0] = 15.0
    assert limit.is_over()
