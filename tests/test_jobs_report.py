import json
import math
import re
import shlex
import sys
import time
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from backends.devices import Device
from jobs import chart
from jobs.comparison import tables
from jobs.config import load_config
from jobs.evaluation import HeldOut
from jobs.events import StepDone
from jobs.happenings import happenings
from jobs.metrics import Metrics, Speed, read_metrics
from jobs.picture import write_picture
from jobs.report import Facts, write_report
from jobs.reproduction import commands
from jobs.spec import Config


def write_metrics(folder, losses):
    metrics = Metrics(folder / "metrics.jsonl")
    for step, loss in enumerate(losses, start=1):
        metrics.append(step_done(step, loss, total=len(losses)))


def step_done(step, loss, total=10):
    return StepDone(
        step=step,
        total_steps=total,
        loss=loss,
        lr=2e-4 * (1 - step / (total + 1)),
        grad_norm=0.5,
        tokens=step * 16_000,
        tokens_per_second=220.0 + 10 * math.sin(step),
        memory_bytes=3_200_000_000,
    )


def make_facts(**changes):
    result = {
        "adapter": "adapter",
        "steps": 120,
        "tokens": 1_920_000,
        "seconds": 8_730.0,
        "loss_before": 2.31,
        "loss_after": 1.42,
        "perplexity_before": 10.07,
        "perplexity_after": 4.14,
    }
    manifest = {
        "source": {"repository": "~/code/the-block"},
        "commit": "3463822f0fcfee39bfeb00bb0e21ff3d440c5736",
        "sequence_length": 1024,
        "splits": {"train": {"rows": 640, "tokens": 640_000}, "held_out": {"rows": 30, "tokens": 30_000}},
    }
    values = {
        "config": Config(),
        "result": result,
        "measurements": [HeldOut(step=0, loss=2.31, tokens=900), HeldOut(step=120, loss=1.42, tokens=900)],
        "manifest": manifest,
        "device": "mps",
        "notes": ("fp16 on Apple GPUs", "47,677,440 trainable parameters"),
    }
    return Facts(**(values | changes))


@pytest.fixture
def page(tmp_path):
    write_metrics(tmp_path, [1.4 + math.exp(-step / 30) + 0.05 * math.sin(step * 7) for step in range(120)])
    return write_report(tmp_path, make_facts()).read_text(encoding="utf-8")


def test_the_page_tells_the_result_the_data_the_machine_and_how_to_load_the_adapter(page):
    for text in ("1.420", "2.310", "4.14", "10.07", "1,920,000", "2 h 25 min", "the-block", "640 rows", "torch"):
        assert text in page
    assert "PeftModel.from_pretrained(base" in page
    assert "47,677,440 trainable parameters" in page
    assert "bigcode/starcoder2-3b" in page


def test_the_page_fetches_nothing(page):
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|<script|https?://""", page)


def test_the_page_is_well_formed(page):
    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open_tags = []

        def handle_starttag(self, tag, attributes):
            if tag not in {"meta", "br"}:
                self.open_tags.append(tag)

        def handle_startendtag(self, tag, attributes):
            pass

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    parser = Balance()
    parser.feed(page)
    assert parser.open_tags == []


SCORES = {"loss": 2.0, "perplexity": 7.39, "bits_per_byte": 1.1, "fim_exact": 0.25, "next_line_exact": None}
BETTER = {"mean": -0.5, "low": -0.7, "high": -0.3}


def make_split(**changes):
    values = {"documents": 3, "tokens": 900, "bytes": 2700, "base": SCORES, "adapter": SCORES | {"loss": 1.5}}
    return values | {"difference": {"loss": BETTER, "fim_exact": BETTER | {"high": 0.1}}} | changes


def test_base_and_adapter_stand_side_by_side_with_their_intervals(tmp_path):
    write_metrics(tmp_path, [1.0])
    languages = {"Python": make_split(), "Shell": make_split()}
    sample = {"path": "a.py", "prompt_tail": "x = <", "truth": "1", "base": "0", "adapter": "1"}
    evaluation = {"splits": {"future": make_split(languages=languages)}, "samples": [sample]}
    page = write_report(tmp_path, make_facts(evaluation=evaluation)).read_text(encoding="utf-8")
    for text in ("Newer commits", "-0.500 better", "-0.700 to -0.300", "25.0%", "Newer commits: Python", "x = &lt;"):
        assert text in page
    assert "Next line" not in page
    assert "Held-out files" not in page


@pytest.mark.parametrize(
    ("name", "interval", "verdict"),
    [
        ("loss", (-0.7, -0.3), "better"),
        ("loss", (0.3, 0.7), "worse"),
        ("loss", (-0.7, 0.3), ""),
        ("fim_exact", (0.1, 0.3), "better"),
        ("fim_exact", (-0.3, -0.1), "worse"),
        ("fim_exact", (None, None), ""),
    ],
)
def test_better_is_said_only_where_chance_is_left_out(name, interval, verdict):
    difference = {name: {"mean": 0.0, "low": interval[0], "high": interval[1]}}
    (table,) = tables({"splits": {"future": make_split(difference=difference)}})
    verdicts = {score.name: score.verdict for score in table.scores}
    assert verdicts["Loss, nats per token" if name == "loss" else "Gap filled exactly"] == verdict


def test_what_happened_is_told_and_marked_in_the_curves(tmp_path):
    losses = [2.0, None, None, 1.9, None, *[1.8] * 20]
    write_metrics(tmp_path, [math.nan if loss is None else loss for loss in losses])
    healed = {"kind": "healed", "step": 9, "message": "memory ran out", "time": 1.7e9, "numbers": {}}
    page = write_report(tmp_path, make_facts(incidents=[healed, {"kind": "best", "step": 12}])).read_text()
    assert page.index("Steps 2 to 3 were skipped") < page.index("Step 5 was skipped") < page.index("memory ran out")
    assert "3 skipped" in page
    # Loss, gradient, speed and memory: each with the three that changed something.
    assert page.count("<s style") == 4 * 3


def test_both_losses_at_a_seam_are_points_of_the_curve_and_the_later_one_counts(tmp_path):
    write_metrics(tmp_path, [2.0] * 9)
    measured = [HeldOut(step=step, loss=loss, tokens=9) for step, loss in ((9, 1.6), (9, 1.75), (0, 2.3))]
    page = write_report(tmp_path, make_facts(measurements=measured)).read_text()
    assert page.index("step 0: held-out loss 2.3") < page.index("held-out loss 1.6") < page.index("held-out loss 1.75")
    assert ">1.750</strong>" in page


def test_of_very_many_happenings_the_first_and_the_last_are_told():
    many = [{"kind": "skipped", "step": step, "message": f"step {step}"} for step in range(1000)]
    told = happenings(many, [])
    assert (told[0].step, told[-1].step, len(told)) == (0, 999, 101)
    assert told[50].message == "900 more, which are not shown"


def test_a_run_that_ended_early_says_why_and_offers_no_adapter(tmp_path):
    write_metrics(tmp_path, [2.0, 9.0])
    facts = make_facts(result={"steps": 2, "tokens": 90, "seconds": 3.0}, ending="Ended after step 2 of 9: too fast.")
    page = write_report(tmp_path, facts).read_text()
    assert "Ended after step 2 of 9: too fast." in page
    assert "PeftModel" not in page


def test_a_long_run_gives_a_small_page_quickly(tmp_path):
    lines = "".join(step_done(step, 2.0 + math.sin(step), total=50_000).to_json() + "\n" for step in range(1, 50_001))
    (tmp_path / "metrics.jsonl").write_text(lines)
    began = time.process_time()
    page = write_report(tmp_path, make_facts())
    assert page.stat().st_size < 200_000
    assert time.process_time() - began < 8


def test_the_commands_make_the_same_choices_again():
    given = ("optimization.learning_rate=1e-3", "lora.target_modules=[q_proj]", "cuda.quantization.kind=int8")
    config = load_config(settings=[*given, "training.gradient_checkpointing='on'", "model.name=a/model"])
    manifest = {"source": {"repository": "a b", "since": None}, "commit": "c" * 40, "config": {"fim_rate": 0.25}}
    dataset, training = (shlex.split(line) for line in commands(config.for_device(Device.CUDA), manifest, "cuda"))
    assert dataset[:6] == ["repotune", "dataset", "--repo", "a b", "--output", "dataset"]
    assert "dataset.fim_rate=0.25" in dataset
    settings = [word for flag, word in pairwise(training) if flag == "--set"]
    assert load_config(settings=settings).for_device(Device.CUDA) == config.for_device(Device.CUDA)


def test_the_picture_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    steps = [{"step": step, "loss": 3.0 - step / 100} for step in range(1, 50)] + [{"step": 50, "loss": None}]
    picture = write_picture(tmp_path, "a model", steps, [HeldOut(step=0, loss=3.0, tokens=9)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert write_picture(tmp_path, "nothing", [], []) == picture


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert write_picture(tmp_path, "a model", [], []) is None
    assert list(tmp_path.iterdir()) == []


def test_names_are_escaped(tmp_path):
    write_metrics(tmp_path, [1.0])
    config = Config.model_validate({"model": {"name": "<script>alert(1)</script>"}})
    assert "<script>" not in write_report(tmp_path, make_facts(config=config)).read_text()


@pytest.mark.parametrize("losses", [[], [2.0], [2.0, 2.0], [2.0, None, 1.5], [None], [1e-9, 1e9]])
def test_a_page_is_made_of_any_course(tmp_path, losses):
    write_metrics(tmp_path, [math.nan if loss is None else loss for loss in losses])
    page = write_report(tmp_path, make_facts(measurements=[])).read_text()
    assert "nan" not in page.lower()


def test_a_gguf_base_is_named_so_that_transformers_finds_it(tmp_path):
    write_metrics(tmp_path, [1.0])
    config = Config.model_validate({"model": {"name": "/models/small.gguf"}})
    page = write_report(tmp_path, make_facts(config=config)).read_text()
    assert "gguf_file=&#39;small.gguf&#39;" in page


def test_points_lie_inside_the_plot():
    drawn = chart.line_chart([(step, 3.0 - step / 7) for step in range(1, 20)], markers=[(0, 3.4, "before")])
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", drawn.line)]
    assert all(0 <= number <= 100 for number in numbers)
    assert (drawn.markers[0].x, drawn.markers[0].text) == (0, "before")
    assert all(0 <= tick.place <= 100 for tick in drawn.x_ticks + drawn.y_ticks)


def test_long_courses_are_thinned():
    drawn = chart.line_chart([(step, math.sin(step / 100)) for step in range(50_000)], smooth=True)
    assert drawn.line.count("L") <= chart.MAX_POINTS
    assert drawn.smooth


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (12345.0, "12,345"), (0.25, "0.25"), (2e-5, "2e-5"), (1.5e-4, "1.5e-4"), (7, "7")]
)
def test_numbers_are_written_for_people(value, text):
    assert chart.number(value) == text


def test_metrics_hold_one_object_per_step_and_null_where_json_has_no_number(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl", known=b'{"step":1}\n')
    metrics.append(step_done(2, math.nan))
    lines = read_metrics(metrics.file)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[1]["loss"] is None
    assert {"lr", "grad_norm", "tokens", "tokens_per_second", "memory_bytes"} <= lines[1].keys()
    assert json.loads(metrics.content().splitlines()[0]) == {"step": 1}


def test_speed_is_that_of_the_last_steps():
    speed = Speed()
    assert speed.tokens_per_second == 0.0
    for _ in range(30):
        speed.add(100, 1.0)
    for _ in range(20):
        speed.add(100, 2.0)
    assert speed.tokens_per_second == 50.0
