"""Start the vault from the courier, and have the kernel refuse the courier the images.

```
vault = start_vault(settings)        # before anything else: see below
with vault, vault.worker() as worker:
    worker.improve(task)             # a Worker like any other
```
Call it before torch and NumPy are imported: then the courier has no older thread that could still
read the images. The courier holds the other end of the vault's standard input, so the vault ends
with it, even if it is killed.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from knowmine.client.paths import couriers_part, prepare, vaults_part
from knowmine.client.settings import ClientSettings
from knowmine.client.vault.sandbox import can_list, hide_folders, older_threads
from knowmine.shared.errors import KnowmineError, Refused, RunFailed, UsageError

if TYPE_CHECKING:
    from knowmine.client.vault.requests import AirlockWorker


def start_vault(settings: ClientSettings) -> "Vault":
    """Start the vault, then have the kernel refuse us the images.

    Raises `Refused` if `isolation: required` is set and this system cannot give it.
    """
    vault = Vault(settings)
    try:
        vault.give_up_images()
    except BaseException:
        vault.close()
        raise
    return vault


class Vault:
    """The running vault.

    socket: where it answers. missing: in words, what this system's isolation lacks. After
    `worker()` this includes what the vault itself lacks.
    """

    def __init__(self, settings: ClientSettings) -> None:
        """Start the process."""
        self.missing: list[str] = []
        self._settings = settings
        prepare(settings.state)
        self._folder = Path(tempfile.mkdtemp(prefix="knowmine-"))  # only its owner may enter
        self.socket, file = self._folder / "airlock", self._folder / "settings.yaml"
        file.write_text(json.dumps(settings.model_dump(mode="json")), encoding="utf-8")
        command = [sys.executable, "-m", "knowmine.client.vault.process"]
        command += ["--settings", str(file), "--socket", str(self.socket)]
        command += ["--remove", str(self._folder)]  # we are about to lose the right to remove it
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603 - ours

    def give_up_images(self) -> None:
        """Have the kernel refuse us the images, the vault's state, and changes outside our part."""
        if self._settings.isolation == "off":
            return
        data = self._settings.data
        hidden = {"the images": data, **vaults_part(self._settings)}
        why_not = hide_folders(
            [*hidden.values(), data / "images", data / "masks"], couriers_part(self._settings)
        )
        seen = [what for what, folder in hidden.items() if can_list(folder)]
        if seen:
            self.missing.append(f"the courier can still read {', '.join(seen)}: {why_not}")
        elif threads := older_threads():
            self.missing.append(f"{threads} older threads of the courier can still read the images")
        if self._settings.isolation == "required" and self.missing:
            raise Refused(
                f"isolation is required, but {'; '.join(self.missing)}. Use a system with "
                "Landlock (Linux 5.13 or newer), or set isolation: auto"
            )

    def worker(self) -> "AirlockWorker":
        """A `Worker` whose site is behind the airlock."""
        from knowmine.client.vault.requests import AirlockWorker, installed_manifest

        manifest = installed_manifest(self._settings.model)
        worker = AirlockWorker(self.socket, self._settings, manifest, self.refuse_if_ended)
        self.missing += worker.isolation().missing()
        return worker

    def refuse_if_ended(self) -> None:
        """Raise the error that the vault ended with, if it has ended."""
        code = self._process.poll()
        if code is not None:
            kind: type[KnowmineError] = {2: UsageError, 4: Refused}.get(code, RunFailed)
            raise kind(f"the vault ended with {code}; its messages are on standard error")

    @property
    def pid(self) -> int:
        """The keeper's process id."""
        return self._process.pid

    def close(self) -> None:
        """End the vault and wait for its end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(self._settings.stop_s + 10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
