"""`repotune export` as a person types it."""

import json

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from jobs.spec import ModelSection  # noqa: E402
from workers.export_command import export  # noqa: E402


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "run" / "adapter"
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8.0, "base_model_name_or_path": "/not/here"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    safetensors.save_file({"a": torch.ones(2)}, folder / "adapter_model.safetensors")
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


def settings_of(adapter, file=None, settings=(), model=None):
    from jobs.published import open_published
    from workers.options import read_config_of

    return read_config_of(open_published(adapter), file, settings, model).model


def test_an_adapters_own_base_wins_over_that_of_a_file_and_yields_to_a_person(adapter, tmp_path):
    about = json.loads((adapter / "adapter_config.json").read_text())
    about |= {"base_model_name_or_path": "me/own", "revision": "v1"}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    file = tmp_path / "config.yaml"
    file.write_text("model:\n  name: me/of-the-file\n  revision: v2\n")
    assert settings_of(adapter, file) == ModelSection(name="me/own", revision="v1")
    assert settings_of(adapter, file, model="me/typed") == ModelSection(name="me/typed", revision=None)
    assert settings_of(adapter, None, ("model.name=me/set",)) == ModelSection(name="me/set", revision=None)
    assert settings_of(adapter, None, ("model.revision=v3",)) == ModelSection(name="me/own", revision="v3")
