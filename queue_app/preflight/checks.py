"""All checks of a request, one after the other; `validate` shows every line, `submit` stops at the first fail."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backends.devices import ANY, Device
from backends.errors import RepotuneError
from jobs.repository import shown
from jobs.spec import Config
from queue_app.model_facts import find_model_facts
from queue_app.plan import Code, Plan, Request, config_of_dataset, make_plan, read_code
from queue_app.plan_text import model_line, needs_lines, source_line
from queue_app.preflight.data import built_line, planned_line
from queue_app.preflight.line import CheckLine, Grade, Place, PreflightFailed, failed, passed, warned
from queue_app.preflight.machine import Looking, hardware_line, power_line, temperature_line
from queue_app.preflight.model import Access, check_access
from queue_app.preflight.room import disk_line, disk_need
from queue_app.settings import Settings


class Preflight:
    """The checks of one request. `plan` and `probe` are known once their lines were taken."""

    def __init__(self, request: Request, settings: Settings, place: Place, dataset: Path | None = None) -> None:
        self.request = request
        self.plan: Plan | None = None
        #: What `workers.probe` found on this machine; empty where nobody looked.
        self.probe: dict[str, Any] = {}
        self._settings = settings
        self._place = place
        self._dataset = dataset
        self._access: Access | None = None

    def lines(self) -> Iterator[CheckLine]:
        """Every line, as it is found; what an earlier fail leaves nothing to check of is left out."""
        configuration = _configuration(self.request)
        yield configuration
        if configuration.grade is Grade.FAIL:
            return
        yield from _trackers(self.request.config, self._place)
        if self._place is Place.QUEUE:
            yield from self._job()
            return
        looking = Looking(self.request.device)
        try:
            yield from self._job()
            yield from self._machine(looking)
        finally:
            looking.stop()

    def to_plan(self) -> tuple[Plan, list[CheckLine]]:
        """Check until something fails; the plan, and the warnings.

        Raises:
            PreflightFailed: the first check that failed.
            RepotuneError: as `make_plan` does.
        """
        warnings = []
        for line in self.lines():
            if line.grade is Grade.FAIL:
                raise PreflightFailed(line)
            if line.grade is Grade.WARN:
                warnings.append(line)
        return self.plan or make_plan(self.request), warnings

    def _job(self) -> Iterator[CheckLine]:
        """What does not depend on the machine: code, model, memory, dataset."""
        code, line = _code(self.request)
        yield line
        model = self.request.config.model
        facts = find_model_facts(model.name, model.revision)
        self._access = check_access(facts, model.revision, self._place)
        yield self._access.line
        if code is None:
            return
        try:
            self.plan = make_plan(self.request, code, facts)
        except RepotuneError as error:
            yield failed("memory", error)
            return
        yield from _memory(self.plan)
        config = config_of_dataset(self.request)
        yield built_line(self._dataset, config, facts.config) if self._dataset else planned_line(self.plan, config)
        yield disk_line(self._need(self.plan), self._settings, self._place.lacking)

    def _need(self, plan: Plan) -> dict[str, int]:
        """What the job takes on this machine's disk."""
        if self._place is Place.QUEUE:
            return {"bundle": plan.size_bytes} if plan.size_bytes else {}
        need = disk_need(plan, self.request.config.output, self._access.download_bytes if self._access else 0)
        if self._dataset:
            need.pop("dataset", None)
        return need

    def _machine(self, looking: Looking) -> Iterator[CheckLine]:
        yield power_line()
        yield temperature_line()
        found = looking.found()
        self.probe = found.get("probe", {})
        yield hardware_line(found, self.plan.needs if self.plan else (), self._place)


def _configuration(request: Request) -> CheckLine:
    """Keys that are right one by one may not go together on a device."""
    devices = tuple(Device) if request.device == ANY else (Device(request.device),)
    try:
        for device in devices:
            request.config.for_device(device)
    except RepotuneError as error:
        return failed("configuration", error)
    return passed("configuration", f"goes together on {', '.join(devices)}")


def _trackers(config: Config, place: Place) -> Iterator[CheckLine]:
    """Whether the trackers of `output.sinks` are installed where the job runs."""
    wanted = config.output.sinks
    if not wanted:
        return
    if place is Place.QUEUE:
        yield passed("trackers", f"{', '.join(wanted)}: the worker must have them installed")
        return
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        yield warned(
            "trackers",
            f"{', '.join(missing)} not installed here, so nothing will be seen there",
            f"pip install {' '.join(missing)}",
        )
    else:
        yield passed("trackers", ", ".join(wanted))


def _code(request: Request) -> tuple[Code | None, CheckLine]:
    try:
        code = read_code(request)
    except RepotuneError as error:
        return None, failed("repository", error)
    text = f"{source_line(code)} at {code.sources.main.commit[:12]}"
    if code.sources.also:
        text += f", and {', '.join(shown(one.repository) for one in code.sources.also)}"
    shallow = [shown(one.repository) for one in code.sources.all if one.shallow]
    if shallow:
        return code, warned(
            "repository",
            f"{text}; of {', '.join(shallow)} only the newest commits are here",
            "`git fetch --unshallow` there lets all of the history be learned",
        )
    return code, passed("repository", text)


def _memory(plan: Plan) -> Iterator[CheckLine]:
    for text in needs_lines(plan):
        if plan.needs:
            yield passed("memory", text)
        else:
            yield warned("memory", f"{text}; {model_line(plan)}", "a worker that is too small finds out when it loads")
