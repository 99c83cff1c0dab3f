"""The steps that docs/training.md types by hand work in that order, on a small repository and a tiny model."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from queue_app import cli

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "training.md"
SMALL = {
    "quantization": {"group_size": 32},
    "lora": {"rank": 4},
    "dataset": {"sequence_length": 64, "held_out": 0.2},
    "optimization": {"accumulation": 2},
    "training": {"max_steps": 2, "evaluation_rows": 2},
    "evaluation": {"rows": 2, "future_rows": 2, "prompts": 2, "new_tokens": 4, "resamples": 100, "samples": 1},
}


def steps():
    """The commands of the page, with what a person would type in place of its examples left open."""
    (block,) = re.findall(r"<!-- steps:.*?-->\n```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()]


@pytest.fixture(scope="module")
def walked(tmp_path_factory, tiny_repository, tiny_model_folder, typed, probed):
    """The folder in which every step was taken, and what each printed."""
    folder = tmp_path_factory.mktemp("by-hand")
    config = folder / "small.yaml"
    config.write_text(json.dumps(SMALL))
    environment = {"REPOTUNE_CONFIG": str(config), "REPOTUNE_HOME": str(folder), "REPOTUNE_PROBE": probed}
    registered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["repotune.commands"]
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        # The commands that pyproject.toml registers, whichever were there when it was installed.
        patch.setattr(cli, "registered", lambda: registered)
        for program, name, *words in steps():
            assert program == "repotune"
            here = [_here(word, tiny_repository, tiny_model_folder) for word in words]
            printed[name] = typed(name, *here, folder=folder, **environment).stdout
    return folder, printed


def _here(word, repository, model):
    """A word of the page with the test's own repository and model."""
    return word.replace("~/code/the-block", str(repository)).replace("bigcode/starcoder2-3b", str(model))


@pytest.mark.slow
def test_every_step_works_with_what_the_one_before_left(walked):
    folder, printed = walked
    assert list(printed)[:3] == ["validate", "dataset", "train"]
    for file in (
        "the-block.dataset/manifest.json",
        "the-block.dataset/report.html",
        "the-block.run/report.html",
        "the-block.run/adapter/adapter_model.safetensors",
        "the-block.adapter/USE.md",
    ):
        assert (folder / file).is_file(), file
    assert len((folder / "the-block.run" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_the_adapter_comes_with_a_card_of_its_run(walked):
    folder, _ = walked
    card = (folder / "the-block.run" / "adapter" / "README.md").read_text()
    result = json.loads((folder / "the-block.run" / "result.json").read_text())
    assert f"{result['dataset_sha256']}" in card
    assert "tiny-repository" in card
    assert str(folder.parent) not in card
    assert (folder / "the-block.adapter" / "adapter" / "README.md").read_text() == card


def test_the_page_leads_from_one_command_to_this_very_repository():
    text = PAGE.read_text(encoding="utf-8")
    assert "submit-job --repo" in text
    assert "$ make demo" in text
    for file in re.findall(r"examples/[a-z_.]+", text):
        assert (ROOT / file).is_file(), file
