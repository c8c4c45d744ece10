"""A small federation on disk, for tests: provisioned, with kits, sites enrolled as they would."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from knowmine.client.federation.enrolment import enrol
from knowmine.deploy.provision.provision import Provisioned, provision
from knowmine.server.enrolment.allow_list import AllowList
from knowmine.server.enrolment.enrolments import admit_request

NOW = datetime.now(UTC).replace(microsecond=0)
YAML = "federation: chest\nserver: {hosts: [127.0.0.1, localhost]}\nsites: [lyon, oslo]\n"


@dataclass
class Federation:
    """FED/ and the homes of its sites in one temporary folder."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "fed"

    @property
    def sites(self) -> AllowList:
        return AllowList(self.folder / "sites")

    def home(self, site: str) -> Path:
        return self.root / f"home-{site}"

    def provision(self, text: str = YAML, **more) -> Provisioned:
        (self.root / "federation.yaml").write_text(text)
        return provision(self.root / "federation.yaml", self.folder, **more)

    def enrol(self, site: str, home: Path | None = None, now: datetime = NOW) -> Path:
        (self.root / "data").mkdir(exist_ok=True)
        kit = self.folder / "kits" / f"{site}.tar.gz"
        return enrol(kit, home or self.home(site), self.root / "data", now)

    def admit(self, site: str) -> None:
        admit_request(self.enrol(site), self.folder)
