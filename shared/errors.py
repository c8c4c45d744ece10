"""Everything that knowmine raises on purpose, and the exit code of each kind.

```
KnowmineError
├── UsageError           2    a command or setting that cannot be used
│   ├── SettingsError         an unknown key, an impossible value
│   ├── DataError             a data folder or a file in it
│   └── WeightsError          weights missing, truncated or not what they claim to be
├── RunFailed            3    the run could not go on
│   ├── CannotWrite           a full disk, a missing permission
│   └── Paused                too few sites are here; it can go on later
├── Refused              4    the other side did wrong, or a policy forbids it
│   ├── UpdateRefused         a site's reply cannot be averaged
│   ├── EgressRefused         something that may not leave the site tried to
│   └── PackageRefused        an exported model that is not what was signed
└── Interrupted        130    stopped by a person, with the state saved
```

Every message says what was seen, what was expected and what to do. A site's message may hold
paths and file names, so only a key of `REASONS` is sent over the network.
"""

from types import MappingProxyType


class KnowmineError(Exception):
    """Base of all errors whose message a person should read."""

    exit_code = 3


class UsageError(KnowmineError):
    """A command or setting that cannot be used."""

    exit_code = 2


class SettingsError(UsageError):
    """A settings file, key or value that cannot be used."""


class DataError(UsageError):
    """A data folder, image or mask that cannot be used."""


class WeightsError(UsageError):
    """Model weights that are missing, truncated or not what they claim to be."""


class RunFailed(KnowmineError):
    """The run could not go on; what was written before stays."""


class CannotWrite(RunFailed):
    """A full disk or a missing permission; what was written before stays."""


class Paused(RunFailed):
    """Too few sites are here; the run can go on later."""


class Refused(KnowmineError):
    """The other side did wrong, or a policy forbids it."""

    exit_code = 4


class UpdateRefused(Refused):
    """A site's reply that cannot be averaged."""


class EgressRefused(Refused):
    """Something that may not leave the site."""


class PackageRefused(Refused):
    """An exported model whose files are not those that were listed and signed."""


class Interrupted(KnowmineError):
    """Stopped by a person; the state is saved."""

    exit_code = 130


REASONS = MappingProxyType(
    {
        "settings": "the site's settings cannot be used",
        "data": "the site's data folder cannot be used",
        "weights": "the site's SAM weights cannot be used",
        "usage": "the site was asked for something that it cannot do",
        "cannot-write": "the site cannot write: a full disk or a missing permission",
        "failed": "the site could not continue",
        "refused": "the site refused: a policy or its settings forbid the task",
        "interrupted": "the site was stopped by a person",
        "bug": "an unexpected error at the site, in its log",
    }
)
"""What a site sends of an error over the network: only the key; the value is for the reader."""

_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (SettingsError, "settings"),
    (DataError, "data"),
    (WeightsError, "weights"),
    (UsageError, "usage"),
    (CannotWrite, "cannot-write"),
    (RunFailed, "failed"),
    (Refused, "refused"),
    (Interrupted, "interrupted"),
    (KnowmineError, "failed"),
    (OSError, "cannot-write"),
)


def reason_of(error: BaseException) -> str:
    """The key of `REASONS` for an error, without any of its own text.

    >>> reason_of(DataError("/data/lyon/images/mueller-anna.png is damaged")), reason_of(KeyError())
    ('data', 'bug')
    """
    return next((code for kind, code in _CODES if isinstance(error, kind)), "bug")
