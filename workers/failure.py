"""Turns what a job raised into its last event: the cause and one sentence."""

import traceback

from backends.errors import DISK_FULL, RepotuneError
from jobs.events import Failed
from jobs.spec import InvalidSpec
from jobs.states import Cause

#: Of `jobs.planner` and `jobs.healing`: every saving was weighed or made already.
_NOTHING_LEFT = {"DoesNotFit", "NothingToHalve"}

#: The others that mean a lack of memory, by name: their modules load torch.
_LACKS = {"OutOfMemory", "OutOfMemoryError"}


def failure_of(error: BaseException) -> Failed:
    """The event that tells why the job could not go on."""
    details = "".join(traceback.format_exception(error))
    final = type(error).__name__ in _NOTHING_LEFT
    return Failed(cause=_cause(error), message=sentence_of(error), details=details, final=final)


def sentence_of(error: BaseException, where: str = "its log has the traceback") -> str:
    """One sentence for people: what is wrong and what to do.

    Args:
        error: That ended a job.
        where: A clause: where to see more of one that nobody expected.
    """
    if isinstance(error, RepotuneError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        where = f" at {error.filename}" if error.filename else ""
        return f"The disk is full{where}: free some space and run the job again; what was complete is kept."
    if isinstance(error, MemoryError):
        return "The machine ran out of memory: use a smaller sequence length, rank or model."
    message = str(error).strip().partition("\n")[0]
    return f"The job stopped on an unexpected {type(error).__name__}: {message} ({where})."


def _cause(error: BaseException) -> Cause:
    if type(error).__name__ in _NOTHING_LEFT | _LACKS or isinstance(error, MemoryError):
        return Cause.OUT_OF_MEMORY
    return Cause.BAD_SPEC if isinstance(error, InvalidSpec) else Cause.USER_ERROR
