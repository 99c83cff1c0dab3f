"""The configuration: defaults, a file over them, --set over that, and errors that say where."""

from pathlib import Path

import pytest
import yaml

from backends.devices import Device
from jobs.config import default_text, load_config
from jobs.not_yet import NOT_YET
from jobs.spec import Config, InvalidSpec, JobSpec


@pytest.fixture
def config_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "repotune.yaml"
        path.write_text(text)
        return path

    return write


def test_the_shipped_file_states_exactly_the_defaults_of_the_schema():
    shipped = load_config().model_dump(exclude={"mps", "cuda", "cpu"})
    assert shipped == Config().model_dump(exclude={"mps", "cuda", "cpu"})


def test_the_shipped_file_names_every_key():
    shipped = yaml.safe_load(default_text())
    for section, model in Config.model_fields.items():
        if section not in set(Device):
            assert set(shipped[section]) == set(model.annotation.model_fields), section


def test_a_device_section_overrides_the_rest_on_that_device_only(config_file):
    config = load_config(config_file("lora: {rank: 8}\ncuda: {lora: {rank: 64}}\n"))
    assert config.for_device(Device.CUDA).lora.rank == 64
    assert config.for_device(Device.MPS).lora.rank == 8


def test_cuda_gets_four_bits_and_the_others_int8_by_default():
    kinds = {device: load_config().for_device(device).quantization.kind for device in Device}
    assert kinds == {Device.CUDA: "nf4", Device.MPS: "int8", Device.CPU: "int8"}


def test_the_last_set_flag_wins_over_the_file(config_file):
    path = config_file("optimization: {learning_rate: 0.5}\n")
    config = load_config(path, ["optimization.learning_rate=1e-4", "optimization.learning_rate=2e-4"])
    assert config.optimization.learning_rate == 2e-4


def test_set_reaches_a_device_section():
    config = load_config(None, ["cuda.quantization.kind=int8"])
    assert config.for_device(Device.CUDA).quantization.kind == "int8"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("lora:\n  rnk: 3\n", "line 2: lora.rnk: unknown key; allowed here: alpha, dora, dropout"),
        ("lora:\n  alpha: 3\n  rank: hi\n", "line 3: lora.rank: input should be a valid integer"),
        ("lora:\n  rank: -1\n", "line 2: lora.rank: input should be greater than or equal to 1, not -1"),
        ("quantization:\n  kind: int7\n", "line 2: quantization.kind: input should be 'int8', 'int4', 'nf4' or 'none'"),
        ("cuda:\n  lora:\n    rank: 0\n", "line 3: cuda.lora.rank: input should be greater"),
        ("training:\n  seed: 4294967296\n", "line 2: training.seed: input should be less than 4294967296"),
        ("cuda:\n  lora:\n    rnk: 1\n", "line 3: cuda.lora.rnk: unknown key; allowed here: alpha"),
        ("speed: 11\n", "line 1: speed: unknown key; allowed here: cpu, cuda, dataset"),
        ("lora: 3\n", "line 1: lora: "),
        ("lora: [\n", "not valid YAML"),
        ("- lora\n", "expected sections"),
        ("lora:\n  rank: 1\n  rank: 2\n", "line 3: lora.rank is given twice"),
        ("optimization:\n  learning_rate: .nan\n", "line 2: optimization.learning_rate: "),
    ],
)
def test_a_wrong_file_names_line_key_and_what_is_allowed(config_file, text, told):
    path = config_file(text)
    with pytest.raises(InvalidSpec) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert told in str(caught.value)


@pytest.mark.parametrize("setting", ["lora.rank", "=3", "lora.=3", "lora.rnk=3", "lora.rank=abc", "lora=3"])
def test_a_wrong_set_flag_is_quoted(setting):
    with pytest.raises(InvalidSpec, match=f"--set {setting}"):
        load_config(None, [setting])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidSpec, match=r"nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml")


def test_an_empty_file_changes_nothing(config_file):
    assert load_config(config_file("")) == load_config()
    assert load_config(config_file("lora:\n")) == load_config()


def test_a_spec_comes_back_equal_from_its_json():
    spec = JobSpec(kind="training", device="mps", config=load_config(None, ["mps.lora.rank=8"]), dataset_job="data-1")
    again = JobSpec.model_validate_json(spec.model_dump_json())
    assert again.config.for_device(Device.MPS) == spec.config.for_device(Device.MPS)
    assert again.config.for_device(Device.MPS).lora.rank == 8
    assert again.dataset_job == "data-1"


@pytest.mark.parametrize("key", ["dataset.include", "dataset.exclude", "cpu.dataset.exclude"])
@pytest.mark.parametrize("glob", ["[]", "[z-a]"])
def test_what_is_no_glob_is_refused_by_its_key(key, glob):
    with pytest.raises(InvalidSpec, match=rf"{key}.*is no glob"):
        load_config(settings=[f"{key}=['{glob}']"])


@pytest.mark.parametrize(
    ("settings", "group"),
    [
        ([], 128),
        (["quantization.group_size=32"], 32),
        (["quantization.group_size=row"], None),
        (["quantization.kind=int4"], 64),
        (["quantization.kind=int4", "quantization.group_size=row"], 64),
        (["quantization.compute=int8"], None),
        (["quantization.compute=int8", "quantization.group_size=row"], None),
    ],
)
def test_the_group_of_a_scale_is_the_one_that_the_backend_will_hold(settings, group):
    assert load_config(None, settings).quantization.scale_group == group


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("quantization.group_size", 48, "input should be 32, 64, 128, 256 or 'row', not 48"),
        ("quantization.compute", "int4", "input should be 'exact' or 'int8', not 'int4'"),
        ("optimization.optimizer", "sgd", "input should be 'adamw', 'adamw8bit' or 'adafactor', not 'sgd'"),
        ("training.attention", "flash", "input should be 'auto', 'sdpa' or 'blocked', not 'flash'"),
        ("lora.dora", "perhaps", "input should be a valid boolean"),
    ],
)
def test_a_wrong_choice_is_told_with_those_there_are(key, value, told):
    with pytest.raises(InvalidSpec) as caught:
        load_config(None, [f"{key}={value}"])
    assert f"--set {key}={value}: {key}: {told}" in str(caught.value)


@pytest.mark.parametrize("kind", ["int4", "nf4", "none"])
def test_int8_compute_of_other_weights_is_refused(config_file, kind):
    path = config_file(f"quantization:\n  kind: {kind}\n  compute: int8\n")
    with pytest.raises(InvalidSpec) as caught:
        load_config(path)
    assert str(caught.value) == (
        f"{path}, line 3: quantization.compute: int8 needs quantization.kind int8, not {kind}: "
        "set that, or quantization.compute exact."
    )


def test_int8_compute_with_groups_of_ones_own_choice_is_refused(config_file):
    path = config_file("quantization: {compute: int8, group_size: 64}\n")
    with pytest.raises(
        InvalidSpec, match=r"line 1: quantization\.compute: int8 has one scale per row.* to row, not 64"
    ):
        load_config(path)


def test_int8_compute_is_refused_on_apple_gpus_and_nowhere_else():
    config = load_config(None, ["quantization.compute=int8", "cuda.quantization.kind=int8"])
    assert config.for_device(Device.CPU).quantization.compute == "int8"
    assert config.for_device(Device.CUDA).quantization.compute == "int8"
    with pytest.raises(InvalidSpec, match=r"int8 cannot run on mps.* set mps\.quantization\.compute to exact"):
        config.for_device(Device.MPS)
    told = load_config(None, ["quantization.compute=int8", "mps.quantization.compute=exact"])
    assert told.for_device(Device.MPS).quantization.compute == "exact"


def test_keys_that_meet_on_one_device_only_are_checked_there():
    config = load_config(None, ["quantization.compute=int8"])  # the shipped file sets nf4 on cuda
    with pytest.raises(
        InvalidSpec, match=r"^On cuda: quantization\.compute: int8 needs quantization\.kind int8, not nf4"
    ):
        config.for_device(Device.CUDA)


def test_a_problem_in_a_validator_of_ours_is_told_in_its_own_words():
    with pytest.raises(InvalidSpec) as caught:
        load_config(settings=["dataset.include=['[]']"])
    assert str(caught.value).endswith("dataset.include: '[]' is no glob: its set in [ ] is empty or runs backwards.")


def test_every_key_has_one_sentence():
    for section, model in Config.model_fields.items():
        for key, field in getattr(model.annotation, "model_fields", {}).items():
            if section not in set(Device):
                assert field.description.endswith("."), key


@pytest.mark.parametrize("word", ["auto", "on", "off"])
def test_a_bare_on_or_off_of_yaml_is_a_word(word):
    config = load_config(settings=[f"training.gradient_checkpointing={word}"])
    assert config.training.gradient_checkpointing == word


def test_keys_that_nothing_honours_yet_are_keys():
    for key in NOT_YET:
        section, _, name = key.partition(".")
        assert section.startswith("REPOTUNE_") or name in Config.model_fields[section].annotation.model_fields, key


def test_a_value_that_would_be_ignored_is_refused(monkeypatch):
    monkeypatch.setattr("jobs.not_yet.NOT_YET", {"lora.dropout"})
    with pytest.raises(InvalidSpec) as caught:
        load_config(settings=["lora.dropout=0.5"])
    assert str(caught.value) == (
        "--set lora.dropout=0.5: lora.dropout: this version cannot do anything but 0.0 yet: leave it out."
    )
    with pytest.raises(InvalidSpec, match=r"On cuda: lora\.dropout: this version"):
        load_config(settings=["cuda.lora.dropout=0.5"]).for_device(Device.CUDA)


@pytest.fixture
def all_honoured(monkeypatch):
    monkeypatch.setattr("jobs.not_yet.NOT_YET", frozenset())


@pytest.mark.usefixtures("all_honoured")
@pytest.mark.parametrize(("given", "read"), [("all", "all"), ("last:4", "last:4"), ("[0, 3]", (0, 3))])
def test_layers_are_all_or_the_last_or_a_list(given, read):
    assert load_config(settings=[f"lora.layers={given}"]).lora.layers == read


@pytest.mark.usefixtures("all_honoured")
@pytest.mark.parametrize("given", ["last:0", "last:x", "first:3", "[]", "[1, 1]", "[-1]"])
def test_layers_of_another_form_are_refused_with_what_is_expected(given):
    with pytest.raises(InvalidSpec, match=r"lora\.layers: expected "):
        load_config(settings=[f"lora.layers={given}"])


@pytest.mark.usefixtures("all_honoured")
def test_early_stopping_needs_measurements_on_the_way():
    with pytest.raises(InvalidSpec, match=r"training\.early_stopping: .* set training\.evaluate_every_steps"):
        load_config(settings=["training.early_stopping=3"])
    config = load_config(settings=["training.early_stopping=3", "training.evaluate_every_steps=10"])
    assert config.training.early_stopping == 3
