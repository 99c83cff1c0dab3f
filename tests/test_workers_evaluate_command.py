"""`repotune evaluate` as a person runs it, after a training that was evaluated itself."""

import json

import pytest
from click.testing import CliRunner

from workers.evaluate_command import evaluate
from workers.evaluation_table import samples, tables


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_repository, tiny_model_folder, probed, typed):
    folder = tmp_path_factory.mktemp("trained")
    model = ("--model", tiny_model_folder, "--set", "dataset.sequence_length=128", "--set", "dataset.held_out=0.2")
    typed("dataset", "--repo", tiny_repository, "--output", folder / "dataset", *model)
    small = ("quantization.kind=int8", "quantization.group_size=32", "lora.rank=4", "evaluation.prompts=4")
    flags = [part for setting in small for part in ("--set", setting)]
    done = typed(
        *("train", "--dataset", folder / "dataset", "--device", "cpu", "--output", folder / "out", "--max-steps", 2),
        *("--json", *model, *flags),
        REPOTUNE_PROBE=probed,
    )
    return folder, json.loads(done.stdout), flags


@pytest.mark.slow
def test_a_training_ends_with_an_evaluation(trained):
    folder, result, _ = trained
    found = json.loads((folder / "out" / "evaluation.json").read_text())
    assert result["evaluation"] == "evaluation.json"
    assert found["adapter"]["steps"] == 2
    # One commit has no future.
    assert set(found["splits"]) == {"held_out"}
    assert found["splits"]["held_out"]["adapter"]["loss"] == pytest.approx(result["loss_after"], abs=1e-4)
    assert found["splits"]["held_out"]["base"]["loss"] == pytest.approx(result["loss_before"], abs=1e-4)
    assert found["samples"]
    assert "scores" in {
        json.loads(line)["event"] for line in (folder / "out" / "events.jsonl").read_text().splitlines()
    }


@pytest.mark.slow
def test_evaluate_measures_what_the_training_measured(trained, probed, tmp_path, typed):
    folder, _, flags = trained
    arguments = ["evaluate", "--dataset", folder / "dataset", "--adapter", folder / "out" / "adapter"]
    done = typed(*arguments, "--device", "cpu", "--json", "--output", tmp_path / "new", *flags, REPOTUNE_PROBE=probed)
    result = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text()) == result
    kept = json.loads((folder / "out" / "evaluation.json").read_text())
    assert result["splits"] == kept["splits"]
    assert result["samples"] == kept["samples"]
    shown = typed(*arguments, "--device", "cpu", *flags, REPOTUNE_PROBE=probed).stdout
    assert "Held-out files" in shown
    assert "bits per byte" in shown
    assert "truth" in shown


def test_what_is_not_there_is_refused_by_name(tmp_path):
    done = CliRunner().invoke(evaluate, ["--dataset", str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    assert "nowhere" in done.output
    (tmp_path / "adapter").mkdir()
    done = CliRunner().invoke(evaluate, ["--dataset", str(tmp_path), "--adapter", str(tmp_path / "adapter")])
    assert "no adapter_config.json" in str(done.exception)


NUMBERS = dict.fromkeys(("loss", "perplexity", "bits_per_byte", "fim_exact", "fim_similarity", "next_line_exact"), None)


def scores(base, adapter, low, **more):
    interval = {"mean": round(adapter - base, 4), "low": low, "high": None if low is None else low + 0.1}
    return {
        "documents": 3,
        "tokens": 30,
        "base": NUMBERS | {"loss": base},
        "adapter": NUMBERS | {"loss": adapter},
        "difference": NUMBERS | {"loss": interval},
        "languages": {},
        **more,
    }


def text_of(renderable):
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_table_has_both_sides_their_difference_and_its_interval():
    languages = {"Go": scores(3, 2.5, None), "Python": scores(1, 0.5, -0.6, tokens=99)}
    result = {"splits": {"future": scores(2.0, 1.5, -0.55, languages=languages)}, "samples": []}
    (table,) = tables(result)
    lines = [" ".join(line.split()) for line in text_of(table).splitlines()]
    assert lines[0] == "Newer commits: 3 documents, 30 tokens"
    assert "loss, nats a token 2.0000 1.5000 -0.5000 [-0.5500, -0.4500]" in lines
    assert lines[-2:] == [
        "loss, Python 1.0000 0.5000 -0.5000 [-0.6000, -0.5000]",
        "loss, Go 3.0000 2.5000 -0.5000",
    ]
    assert not any("perplexity" in line for line in lines)


def test_a_sample_shows_what_stands_before_and_what_each_said():
    sample = {
        "path": "a.py",
        "split": "future",
        "kind": "next_line",
        "prompt_tail": "def f(x):\n    ",
        "truth": "return [x]",
        "base": "pass",
        "adapter": "return [x]",
    }
    shown = text_of(next(samples({"samples": [sample]})))
    assert "a.py, the rest of a line" in shown
    assert "truth  return [x]" in shown
    assert "base  pass" in shown
