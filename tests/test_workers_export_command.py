"""`repotune export` as a person types it."""

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from workers.export_command import export


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "run" / "adapter"
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8.0, "base_model_name_or_path": "/not/here"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


def typed(*words):
    return CliRunner().invoke(export, [str(word) for word in words])


def test_the_folder_of_a_run_is_enough_and_json_says_where_things_are(adapter, tmp_path, tiny_model_folder):
    out = tmp_path / "out"
    done = typed("--adapter", adapter.parent, "--output", out, "--model", tiny_model_folder, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["output"] == str(out)
    assert {"adapter/adapter_config.json", "USE.md"} <= set(told["files"])


def test_a_base_that_is_not_here_must_be_named(adapter, tmp_path):
    done = typed("--adapter", adapter, "--output", tmp_path / "out")
    assert "name it by --model" in str(done.exception)
    assert not (tmp_path / "out").exists()
