import json
import math
import re
from html.parser import HTMLParser

import pytest

from jobs import chart
from jobs.evaluation import HeldOut
from jobs.events import StepDone
from jobs.metrics import Metrics, Speed, read_metrics
from jobs.report import Facts, write_report
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
    assert speed.eta_seconds(10) is None
    for _ in range(30):
        speed.add(100, 1.0)
    for _ in range(20):
        speed.add(100, 2.0)
    assert speed.tokens_per_second == 50.0
    assert speed.eta_seconds(10) == 20.0
