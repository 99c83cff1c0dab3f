"""Settings come from the environment and `.env`; a wrong one is named, and a password never shown."""

import pytest

from backends.errors import ExitCode
from queue_app.settings import PREFIX, InvalidSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def _no_settings_of_the_person(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_defaults_are_a_broker_and_an_artifact_folder_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("REPOTUNE_HOME", str(tmp_path / "a home"))
    settings = load_settings()
    assert settings.broker_url == "redis://127.0.0.1:6379/0"
    assert settings.artifacts_url == (tmp_path / "a home/artifacts").as_uri()
    assert (settings.lease_seconds, settings.suspect_seconds) == (45, 15)


def test_a_flag_overrides_the_environment_and_that_overrides_the_file(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("REPOTUNE_LEASE_SECONDS=1\nREPOTUNE_RENEW_SECONDS=2\nREPOTUNE_REAP_SECONDS=3\n")
    monkeypatch.setenv("REPOTUNE_RENEW_SECONDS", "20")
    monkeypatch.setenv("REPOTUNE_REAP_SECONDS", "30")
    settings = load_settings(reap_seconds=300, lease_seconds=None)
    assert (settings.lease_seconds, settings.renew_seconds, settings.reap_seconds) == (1, 20, 300)


def test_an_empty_variable_counts_as_unset_and_others_are_not_ours(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("REDIS_PASSWORD=x\nREPOTUNE_BROKER_URL=\n")
    monkeypatch.setenv("REPOTUNE_HOME", "")
    assert load_settings().broker_url == "redis://127.0.0.1:6379/0"
    assert load_settings().home.is_absolute()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("BROKER_URL", "http://me:secret@host", "expected redis://"),
        ("BROKER_URL", "me:secret@host:6379", "expected redis://"),
        ("LEASE_SECONDS", "secret", "valid number"),
        ("LEASE_SECONDS", "0", "greater than 0"),
    ],
)
def test_a_wrong_variable_is_named_and_its_value_is_not_shown(monkeypatch, name, value, words):
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(InvalidSettings, match=f"{PREFIX}{name}: .*{words}") as caught:
        load_settings()
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_file_that_is_no_text_is_a_sentence(tmp_path):
    (tmp_path / ".env").write_bytes(b"\xff\xfe=1")
    with pytest.raises(InvalidSettings, match=r"\.env in this folder cannot be read"):
        load_settings()


def test_a_password_is_not_shown_with_the_settings():
    assert "secret" not in repr(load_settings(broker_url="redis://:secret@h:1/0", artifacts="sftp://u:secret@h/x"))


@pytest.mark.parametrize(("given", "url"), [("s3://bucket/x", "s3://bucket/x"), ("/srv/a b", "file:///srv/a%20b")])
def test_artifacts_may_be_a_url_or_a_folder(given, url):
    assert load_settings(artifacts=given).artifacts_url == url


def test_a_home_under_the_persons_own_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_settings(home="~/x").home == tmp_path / "x"
    assert load_settings(home="x").home == tmp_path / "x"


def test_gauges_listen_on_loopback_unless_told_otherwise(monkeypatch):
    assert (load_settings().metrics_port, load_settings().metrics_address) == (0, "127.0.0.1")
    monkeypatch.setenv("REPOTUNE_METRICS_PORT", "9100")
    assert load_settings().metrics_port == 9100


def test_every_setting_has_its_sentence():
    assert all(field.description for field in Settings.model_fields.values())
