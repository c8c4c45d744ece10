"""What one hospital allows to leave, in a file of its own that can tighten and never loosen.

The defaults are the loosest values, so an empty policy.yaml changes nothing, and no line in it
can allow more. Each receipt holds the policy's digest.

```yaml
rounds: 50                  # updates that may leave, in all runs together
gigabytes: 2
hours: ["22:00-06:00"]      # the site's own clock
min_cases: 10               # numbers about fewer cases do not leave
max_update_norm: 20
approval: manual
```
"""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from knowmine.client.audit.retention import Records
from knowmine.client.settings import ClientSettings
from knowmine.shared.checks import MAX_IMAGES
from knowmine.shared.settings import Settings, read_settings


def _window(text: str) -> str:
    start, end = _minutes(text)
    if start == end:
        raise ValueError(f"{text} has no length; leave hours out to allow the whole day")
    return text


def _minutes(text: str) -> tuple[int, int]:
    """Start and end of "22:00-06:00" in minutes after midnight."""
    start, end = (int(part[:2]) * 60 + int(part[3:]) for part in text.split("-"))
    return start, end


_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9]"
Window = Annotated[str, StringConstraints(pattern=f"^{_CLOCK}-{_CLOCK}$"), AfterValidator(_window)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Policy(Settings):
    """What may leave a site. Every default is the loosest value."""

    rounds: int = Field(
        10_000, ge=0, le=10_000, description="Updates that may leave, in all runs together."
    )
    gigabytes: float = Field(
        10_000,
        ge=0,
        le=10_000,
        description="What may leave in all runs together: tensors and numbers, 10^9 bytes each.",
    )
    hours: tuple[Window, ...] = Field(
        (),
        max_length=24,
        description="Times of day in which something may leave, by the site's clock, such as "
        '"22:00-06:00". Not set: always.',
    )
    models: tuple[Digest, ...] = Field(
        (),
        max_length=100,
        description="Models that may be trained here, by the SHA-256 of their list of tensors; a "
        "refusal names it. Not set: the model in the settings.",
    )
    min_cases: int = Field(
        1,
        ge=1,
        le=MAX_IMAGES,
        description="Numbers about fewer cases than this do not leave: counts become 0, sums and "
        "means are left out, and an update trained on fewer is not sent. 1 lets all leave.",
    )
    max_update_norm: float = Field(
        10_000,
        gt=0,
        le=10_000,
        description="How far an update's trained weights may be from the weights that were sent: "
        "the Euclidean norm over all of them.",
    )
    max_change: float = Field(
        100,
        gt=0,
        le=100,
        description="How far any single trained weight may be from its value as it was sent.",
    )
    approval: Literal["auto", "manual"] = Field(
        "auto",
        description="manual: each update waits for `knowmine-client approve`; auto: it leaves "
        "when all checks pass.",
    )
    approval_timeout_h: float = Field(
        24, gt=0, le=720, description="Hours after which an update without approval is refused."
    )
    records: Records = Field(default_factory=Records, description="How long the audit log is kept.")

    def digest(self) -> str:
        """SHA-256 over canonical JSON: equal policies have equal digests, however they are written."""
        values = self.model_dump(mode="json")
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def open_at(self, now: datetime) -> bool:
        """Whether something may leave at `now`, in this machine's time zone."""
        here = now.astimezone()
        minute = here.hour * 60 + here.minute
        return not self.hours or any(_within(minute, window) for window in self.hours)


LOOSEST = Policy()
"""The policy of a site that has no policy of its own."""


def read_policy(file: Path | None) -> Policy:
    """The policy in a file, or the loosest without a file. Raises `SettingsError`."""
    return read_settings(Policy, file, {}) if file else LOOSEST


def policy_of(settings: ClientSettings) -> Policy:
    """The site's policy; a file that the settings name must exist. Raises `SettingsError`."""
    named = "policy" in settings.model_fields_set
    return read_policy(settings.policy if named or settings.policy.exists() else None)


def _within(minute: int, window: str) -> bool:
    start, end = _minutes(window)
    if start < end:
        return start <= minute < end
    return minute >= start or minute < end  # over midnight
