"""The documentation says what the program does: generated pages are fresh, links lead somewhere, files parse."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_fresh(generator):
    stale = [path.name for path, text in generator.pages().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run `make docs`: {stale}"


def test_every_command_is_documented_with_a_sentence(generator):
    for name in generator.command_names():
        first = generator.help_of(name).split("\n\n")[1].strip()
        assert first[0].isupper(), name
        assert first.endswith("."), name


def test_every_configuration_key_stands_in_the_page_with_its_sentence():
    page = (ROOT / "docs" / "configuration.md").read_text()
    from jobs.spec import Config

    for section, field in Config.model_fields.items():
        if section in {"mps", "cuda", "cpu"}:
            continue
        for key, value in field.annotation.model_fields.items():
            assert f"| `{key}` |" in page, f"{section}.{key}"
            assert value.description, f"{section}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_commands_that_the_readme_types_exist(generator):
    text = (ROOT / "README.md").read_text()
    typed = set(re.findall(r"^\$ (?:\.venv/bin/)?repotune ([a-z]+)", text, re.MULTILINE))
    assert typed
    assert typed <= set(generator.command_names())


def test_the_demo_configuration_is_valid():
    from jobs.config import load_config

    assert load_config(ROOT / "examples" / "demo.yaml").lora.rank == 16


def test_compose_gives_the_queue_a_password_persistence_and_no_eviction():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    command = services["redis"]["command"]
    assert {"redis", "monitor", "cpu-worker", "cuda-worker"} == set(services)
    assert "--requirepass" in command
    assert "--appendonly yes" in command
    assert "noeviction" in command
    assert services["cuda-worker"]["profiles"] == ["cuda"]


def test_the_roles_that_compose_builds_are_stages_of_the_dockerfile():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    stages = set(re.findall(r"^FROM \S+ AS (\w+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert {service["build"]["target"] for service in services.values() if "build" in service} <= stages


def test_settings_named_in_the_example_environment_exist():
    from queue_app.settings import Settings

    known = {f"REPOTUNE_{name.upper()}" for name in Settings.model_fields} | {"REDIS_PASSWORD"}
    text = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", text, re.MULTILINE)) <= known
