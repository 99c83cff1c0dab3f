import itertools
import json
import shlex

import pytest
import yaml

from backends.devices import Device
from jobs.base import full_name, licence_of_base, public_name
from jobs.card import CardFacts, write_card
from jobs.config import load_config
from jobs.reproduction import commands, public_repository, published

COMMIT = "3463822f0fcfee39bfeb00bb0e21ff3d440c5736"
MIT = (
    "Permission is hereby granted, free of charge, to any person obtaining a copy of this software. "
    "The above copyright notice and this permission notice shall be included."
)


def manifest(repository="https://me:token-4711@example.org/people/the-block.git", **changes):
    return {
        "source": {"repository": repository, "shallow": False, "since": None},
        "commit": COMMIT,
        "trained_until": "b" * 40,
        "config": load_config().dataset.model_dump(mode="json"),
        "sequence_length": 1024,
        "splits": {"train": {"rows": 640, "tokens": 640_000}, "held_out": {"rows": 30, "tokens": 30_000}},
    } | changes


def facts(*settings, **changes):
    values = {
        "config": load_config(None, settings).for_device(Device.CPU),
        "result": {
            "steps": 120,
            "tokens": 1_920_000,
            "loss_before": 2.31,
            "loss_after": 1.42,
            "perplexity_before": 10.07,
            "perplexity_after": 4.14,
            "held_out_rows": 30,
            "held_out_tokens": 30_000,
            "dataset_sha256": "42be",
        },
        "manifest": manifest(),
        "device": "cpu",
    }
    return CardFacts(**(values | changes))


def card(folder, *settings, **changes):
    return write_card(folder, facts(*settings, **changes)).read_text(encoding="utf-8")


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_tells_the_data_the_numbers_the_licence_and_how_again(tmp_path):
    stats = {"licences": {"files": [{"path": "COPYING", "spdx": "MIT"}], "headers": {}}, "redactions": {"total": 7}}
    text = card(tmp_path, licence="bigcode-openrail-m", stats=stats)
    for part in (COMMIT, "640 rows", "2.3100", "1.4200", "COPYING (MIT)", "7 places", "repotune train --dataset"):
        assert part in text, part
    assert front_matter(text) == {
        "base_model": "bigcode/starcoder2-3b",
        "library_name": "peft",
        "license": "bigcode-openrail-m",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "code", "repotune"],
    }


def test_the_card_keeps_passwords_and_folders_of_this_machine_to_itself(tmp_path):
    model = tmp_path / "private" / "tiny.gguf"
    model.parent.mkdir()
    model.touch()
    text = card(tmp_path, f"model.name={json.dumps(str(model))}", manifest=manifest("/home/me/work/the-block"))
    assert "token-4711" not in card(tmp_path)
    assert str(tmp_path) not in text
    assert "/home/me" not in text
    assert "base_model" not in front_matter(text)
    assert "tiny.gguf" in text
    assert "--repo the-block" in text


def test_the_same_run_gives_the_same_card(tmp_path):
    assert card(tmp_path) == card(tmp_path)


def test_an_unknown_licence_is_said_to_be_unknown(tmp_path):
    text = card(tmp_path)
    assert "license" not in front_matter(text)
    assert "licence is not known" in text


def test_an_evaluation_stands_in_the_card_with_its_intervals(tmp_path):
    scores = {
        "base": {"loss": 2.0, "fim_exact": 0.25},
        "adapter": {"loss": 1.5, "fim_exact": None},
        "difference": {"loss": {"mean": -0.5, "low": -0.6, "high": -0.4}},
    }
    text = card(tmp_path, evaluation={"splits": {"future": scores}})
    assert "| newer commits | loss | 2.0000 | 1.5000 | -0.5000 [-0.6000, -0.4000] |" in text
    assert "fill-in exact" not in text
    scores["difference"]["loss"] |= {"low": None, "high": None}
    text = card(tmp_path, evaluation={"splits": {"future": scores}})
    assert "| newer commits | loss | 2.0000 | 1.5000 | -0.5000 |" in text


def test_a_folder_is_named_in_full_and_a_hub_id_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    assert full_name("base") == str(tmp_path / "base")
    assert full_name("me/base") == "me/base"


def test_a_bar_or_a_line_end_in_a_value_breaks_no_table(tmp_path):
    text = card(tmp_path, manifest=manifest(trained_until="a|b\nc"))
    assert "| Newest commit learned | a\\|b c |" in text


def test_the_commands_hold_every_setting_that_is_not_the_default():
    config = load_config(None, ["lora.rank=8", "model.revision=v2", "lora.target_modules=[q_proj, v_proj]"])
    data, run = commands(*published(config.for_device(Device.CPU), manifest()), "cpu")
    model = f"--set model.name={config.model.name} --set model.revision=v2"
    assert data.endswith(model)
    assert run.endswith(f'{model} --set lora.rank=8 --set \'lora.target_modules=["q_proj", "v_proj"]\'')


def test_the_commands_of_a_card_name_further_repositories_and_no_folder_of_this_machine():
    further = {"repository": "/home/me/secret-place/lib", "commit": "c" * 40, "weight": 0.5}
    told = manifest("/home/me/secret-place/the-block", sources=[manifest()["source"], further])
    config = load_config(None, ["model.name=/home/me/secret-place/base.gguf"])
    both = " ".join(commands(*published(config.for_device(Device.CPU), told), "cpu"))
    assert "secret-place" not in both
    assert f'dataset.also=[{{"repository": "lib", "ref": "{"c" * 40}", "weight": 0.5}}]' in both


def test_the_commands_give_the_same_configuration_again_on_every_device():
    for device in Device:
        config = load_config(None, ["quantization.kind=int8", "cuda.quantization.kind=int8", "lora.alpha=16"])
        _, run = commands(*published(config.for_device(device), manifest()), device.value)
        words = shlex.split(run)
        settings = [after for word, after in itertools.pairwise(words) if word == "--set"]
        assert load_config(None, settings).for_device(device) == config.for_device(device)


def test_a_dataset_of_a_range_and_with_other_settings_is_made_again_the_same_way():
    told = manifest(source={"repository": "/home/me/the-block", "since": "v1"})
    told["config"] |= {"sequence_length": 256}
    data, _ = commands(*published(facts().config, told), "cpu")
    assert f"--ref v1..{COMMIT}" in data
    assert data.endswith("--set dataset.sequence_length=256")


@pytest.mark.parametrize(
    ("repository", "told"),
    [
        ("https://me:secret@example.org/a/b.git", "https://example.org/a/b.git"),
        ("git@example.org:a/b.git", "git@example.org:a/b.git"),
        ("file:///home/me/b", "b"),
        ("/home/me/b/", "b"),
        ("", "repository"),
    ],
)
def test_a_repository_is_told_without_secrets_and_folders(repository, told):
    assert public_repository(manifest(repository)) == told


def test_a_model_is_told_by_its_id_or_the_last_part_of_its_path(tmp_path):
    assert public_name("bigcode/starcoder2-3b") == "bigcode/starcoder2-3b"
    assert public_name(str(tmp_path / "model.gguf")) == "model.gguf"


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({"README.md": "---\nlicense: apache-2.0\n---\n# Model\n"}, "apache-2.0"),
        ({"README.md": "---\nlicense: other\nlicense_name: own\n---\n"}, "own"),
        ({"README.md": "no front matter", "LICENSE": MIT}, "MIT"),
        ({"README.md": "---\nlicense: [broken\n---\n", "LICENSE.txt": "all mine"}, None),
        ({"config.json": "{}"}, None),
    ],
)
def test_the_licence_of_a_folder_comes_from_its_card_or_its_licence_file(tmp_path, files, licence):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence_of_base(str(tmp_path)) == licence


def test_the_licence_of_a_gguf_file_comes_from_its_header(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_license("apache-2.0")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert licence_of_base(str(tmp_path / "m.gguf")) == "apache-2.0"
    (tmp_path / "n.gguf").write_bytes(b"no gguf")
    assert licence_of_base(str(tmp_path / "n.gguf")) is None


def test_a_hub_that_does_not_answer_leaves_the_licence_unknown(monkeypatch):
    import huggingface_hub

    def refuse(*_arguments, **_flags):
        raise OSError

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    assert licence_of_base("bigcode/starcoder2-3b") is None
