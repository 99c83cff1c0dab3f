"""One check, one line: its grade, what was found, and what to do about it."""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from backends.errors import ExitCode, RepotuneError

#: Columns of the name and of the grade.
_NAME, _GRADE = 15, 6


class Grade(StrEnum):
    """How a check ended. Only `fail` stops anything."""

    PASS = "pass"  # noqa: S105 - a grade
    WARN = "warn"
    FAIL = "fail"


class Place(StrEnum):
    """Which machine is meant to run the job; what this one lacks counts accordingly."""

    #: A worker somewhere: this machine is not looked at.
    QUEUE = "queue"
    #: This machine: what it lacks is a fail.
    HERE = "here"
    #: This one, or a worker that has what it lacks: that is a warning.
    EITHER = "either"

    @property
    def lacking(self) -> Grade:
        """The grade of something that this machine lacks."""
        return Grade.FAIL if self is Place.HERE else Grade.WARN


@dataclass(frozen=True, kw_only=True)
class CheckLine:
    """What one check found."""

    name: str
    grade: Grade
    #: A clause, or the whole sentence of an error.
    text: str
    #: What to do, as a clause; "" where the text says it, or there is nothing to do.
    remedy: str = ""
    #: That a fail stands for.
    exit_code: ExitCode = ExitCode.USAGE

    @property
    def sentence(self) -> str:
        """Text and remedy as one sentence."""
        return f"{self.text.rstrip('.')}: {self.remedy.rstrip('.')}." if self.remedy else f"{self.text.rstrip('.')}."

    def for_people(self) -> str:
        """The line in columns."""
        what = f"{self.text.rstrip('.')}: {self.remedy}" if self.remedy else self.text
        return f"{self.name:<{_NAME}}{self.grade:<{_GRADE}}{what}"

    def to_json(self) -> dict[str, Any]:
        """What scripts read."""
        line = asdict(self)
        del line["exit_code"]
        return line


class PreflightFailed(RepotuneError):
    """A check failed: nothing was started. It leaves with the exit code of that check."""

    def __init__(self, line: CheckLine) -> None:
        super().__init__(line.sentence)
        self.exit_code = line.exit_code


def passed(name: str, text: str) -> CheckLine:
    """A check that found nothing wrong."""
    return CheckLine(name=name, grade=Grade.PASS, text=text)


def warned(name: str, text: str, remedy: str = "") -> CheckLine:
    """A check that found something worth a look."""
    return CheckLine(name=name, grade=Grade.WARN, text=text, remedy=remedy)


def failed(name: str, error: RepotuneError) -> CheckLine:
    """A check that an error ended."""
    return CheckLine(name=name, grade=Grade.FAIL, text=str(error), exit_code=error.exit_code)


def worst(lines: list[CheckLine]) -> Grade:
    """The worst grade among `lines`."""
    order = list(Grade)
    return max((line.grade for line in lines), key=order.index, default=Grade.PASS)
