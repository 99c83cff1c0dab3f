"""The commands in a report, run as they stand, make the same adapter."""

import html
import json
import shlex

import pytest

from backends.devices import Device
from jobs.config import load_config
from jobs.reproduction import commands


def weights(output):
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_commands_make_the_same_adapter_again(tmp_path, tiny_repository, tiny_model_folder, typed, probed):
    chosen = [
        "lora.rank=4",
        "optimization.accumulation=2",
        "training.max_steps=3",
        "training.gradient_checkpointing='on'",
    ]
    built = ["dataset.sequence_length=64", "dataset.held_out=0.2", "dataset.seed=5"]
    model = ["--model", str(tiny_model_folder)]
    first, again = tmp_path / "first", tmp_path / "again"
    for folder in (first, again):
        folder.mkdir()

    def run(words, folder):
        typed(*words, folder=folder, REPOTUNE_PROBE=probed, REPOTUNE_HOME=str(folder / "home"))

    def settings(pairs):
        return [word for pair in pairs for word in ("--set", pair)]

    run(["dataset", "--repo", str(tiny_repository), *model, "--output", "made", *settings(built)], first)
    run(["train", "--dataset", "made", *model, "--output", "trained", *settings(chosen)], first)
    config = load_config(settings=[*chosen, f"model.name={tiny_model_folder}"]).for_device(Device.CPU)
    manifest = json.loads((first / "made" / "manifest.json").read_text())
    told = commands(config, manifest, "cpu")
    page = html.unescape((first / "trained" / "report.html").read_text())
    for command in told:
        assert command in page
        run(shlex.split(command)[1:], again)
    assert weights(again / "out") == weights(first / "trained")
