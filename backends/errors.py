"""What a person is told when something is wrong: one sentence and an exit code.

    RepotuneError
    ├── InvalidSpec           (jobs.spec)             2
    ├── RepositoryError       (jobs.repository)       2
    ├── DatasetError          (jobs.shards)           2
    ├── OutputExists          (jobs.context)          2
    ├── InvalidSettings       (queue_app.settings)    2
    ├── StoreUnreachable      (queue_app.store)       3
    ├── JobNotFound           (queue_app.store)       4
    ├── ArtifactError         (queue_app.artifacts)   3, its damaged and missing ones 1
    ├── BackendUnavailable    (backends.errors)       5
    └── ModelNotLoadable      (backends.errors)       2

An error is defined in the lowest module that raises it. The program (`queue_app.cli`) catches `RepotuneError` in one
place, prints its sentence, and exits with its code; anything else is a defect and is reported as such.
"""

import errno
from enum import IntEnum

#: What an OSError says where there is no room: the disk, a quota, or a limit on the size of a file.
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class ExitCode(IntEnum):
    """Every exit code of every command."""

    OK = 0
    JOB_FAILED = 1  # the job ran and failed, or a defect of ours
    USAGE = 2  # wrong flags, bad spec, bad repository: nothing was started
    UNREACHABLE = 3  # the broker or the artifact store does not answer
    NO_SUCH_JOB = 4
    DEVICE_UNAVAILABLE = 5  # this machine lacks the device, or the backend cannot run on it
    INTERRUPTED = 130  # Ctrl-C


class RepotuneError(Exception):
    """An error that a person can act on. Its text is one sentence that says what is wrong and what to do."""

    exit_code = ExitCode.JOB_FAILED


class BackendUnavailable(RepotuneError):
    """This device or backend cannot run here."""

    exit_code = ExitCode.DEVICE_UNAVAILABLE


class ModelNotLoadable(RepotuneError):
    """The model's name or folder does not give a causal language model with a tokenizer."""

    exit_code = ExitCode.USAGE
