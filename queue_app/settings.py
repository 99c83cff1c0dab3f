"""Every environment variable of the program, each with its sentence. Also read from `.env` in the working folder.

Flags override environment variables, those override `.env`, that overrides the defaults here.
"""

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from platformdirs import user_cache_path, user_data_path
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from backends.errors import ExitCode, RepotuneError
from jobs.not_yet import refuse_not_yet

PREFIX = "REPOTUNE_"
_BROKER_SCHEMES = ("redis", "rediss", "unix")


class InvalidSettings(RepotuneError):
    """An environment variable, or a line of `.env`, has an impossible value."""

    exit_code = ExitCode.USAGE


class Settings(BaseSettings):
    """Where things are, and how patient the queue is."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    broker_url: str = Field(
        "redis://127.0.0.1:6379/0",
        repr=False,  # it may hold a password
        description="Redis or Valkey that holds queue and job records: redis://, rediss:// or unix://.",
    )
    home: Path = Field(
        default_factory=lambda: user_data_path("repotune"), description="Folder of the program's own data."
    )
    cache: Path = Field(
        default_factory=lambda: user_cache_path("repotune"), description="Folder whose content may be deleted any time."
    )
    artifacts: str = Field(
        "",
        repr=False,  # as may this
        description="Where bundles, datasets, checkpoints and adapters go: any fsspec URL, or a folder. "
        "Empty means the folder `artifacts` in REPOTUNE_HOME.",
    )
    monitor_auth: str = Field("", repr=False, description="Login of the dashboard, user:password.")
    cache_gigabytes: float = Field(20, gt=0, description="Artifacts in the cache at most, GB; oldest use goes first.")
    lease_seconds: float = Field(45, gt=0, description="A running job unheard of for so long becomes SUSPECT.")
    suspect_seconds: float = Field(15, ge=0, description="A SUSPECT job goes back to the queue after so long.")
    renew_seconds: float = Field(10, gt=0, description="How often a worker renews its lease.")
    reap_seconds: float = Field(5, gt=0, description="How often a worker looks for jobs whose lease ran out.")
    reconcile_seconds: float = Field(30, gt=0, description="How often a worker looks for queued jobs without a ticket.")
    worker_seconds: float = Field(60, gt=0, description="A worker unheard of for so long leaves the list of workers.")
    stop_seconds: float = Field(
        120, gt=0, description="A job asked to stop may take so long to save before it is ended."
    )
    stall_minutes: float = Field(60, gt=0, description="A job without any sign of progress for so long has failed.")
    busy_seconds: float = Field(
        60, ge=0, description="A job whose worker is short of memory is tried again after so long."
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port where a worker shows its gauges to Prometheus; 0 shows none."
    )
    metrics_address: str = Field("127.0.0.1", min_length=1, description="Address of that port; others reach 0.0.0.0.")
    self_test: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether a worker first compares its device with the CPU on a tiny model: auto does so with a GPU.",
    )

    @field_validator("*")
    @classmethod
    def _is_honoured(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what would be ignored."""
        name = info.field_name or ""
        refuse_not_yet(f"{PREFIX}{name.upper()}", value, cls.model_fields[name].default)
        return value

    @field_validator("broker_url")
    @classmethod
    def _is_a_broker(cls, value: str) -> str:
        if urlsplit(value).scheme not in _BROKER_SCHEMES:
            raise ValueError("expected redis://HOST:PORT/DB, rediss://… or unix://…")
        return value

    @field_validator("home", "cache")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def artifacts_url(self) -> str:
        """The fsspec URL of the artifact store."""
        if not self.artifacts:
            return (self.home / "artifacts").as_uri()
        return self.artifacts if "://" in self.artifacts else Path(self.artifacts).expanduser().absolute().as_uri()


def load_settings(**overrides: Any) -> Settings:
    """The settings of this process; an override that is None counts as not given.

    Raises:
        InvalidSettings: a variable has an impossible value; the sentence names it and never shows a password.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        raise InvalidSettings(_sentence(error)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(f"The file .env in this folder cannot be read ({type(error).__name__}).") from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    variable = PREFIX + ".".join(str(part) for part in first["loc"]).upper()
    problem = str(first["msg"]).removeprefix("Value error, ")
    return f"{variable}: {problem[0].lower()}{problem[1:]}."
