"""Join a federation: from the coordinator's kit to keys, settings and a request to send back.

The kit is untrusted until it is checked. Only the coordinator's address, the certificate authority
and the model's settings are copied from it. No file name or path in it is ever followed.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import yaml

from knowmine.client.federation.keys import SiteKeys
from knowmine.client.federation.kit import Kit, open_kit
from knowmine.client.settings import ClientSettings
from knowmine.shared.errors import CannotWrite, UsageError
from knowmine.shared.files import write_atomically
from knowmine.shared.settings import read_settings
from knowmine.shared.trust.certificates import to_pem
from knowmine.shared.trust.enrolment import PrivateKey, RequestBody, make_request
from knowmine.shared.trust.keys import audit_line, make_private_folder, node_line


def enrol(kit: Path, home: Path, data: Path, now: datetime | None = None) -> Path:
    """Enrol the machine: return the request that goes to the coordinator.

    kit: folder or .tar.gz. home: gets keys/, ca.crt, client.yaml and NAME.request.
    data: the folder of images/ and masks/.

    client.yaml is written last: a folder that holds it is enrolled. After a crash before that, the
    next call goes on with what is there, keys included.
    Raises `UsageError` for a kit that cannot be used and for a folder that is already enrolled.
    """
    now = now or datetime.now(UTC)
    settings_file = home / "client.yaml"
    opened = open_kit(kit, now)
    site = opened.enrolment.site
    if settings_file.exists():
        raise UsageError(
            f"{home} is already enrolled ({settings_file} exists), and a kit serves once. Either "
            f"use the folder as it is, or ask the coordinator for another kit "
            f"(`knowmine-server provision ... --new-kit {site}`) and enrol in a new folder"
        )
    if not data.is_dir():
        raise UsageError(f"no folder {data}: name the folder that holds images/ and masks/")
    make_private_folder(home)
    keys = SiteKeys.open(home / "keys", site, now)
    body = RequestBody(
        federation=opened.enrolment.federation,
        site=site,
        kit=opened.enrolment.kit,
        certificate=to_pem(keys.certificate).decode(),
        node_key=node_line(keys.node),
        audit_key=audit_line(keys.audit),
        created_at=now.replace(microsecond=0),
    )
    private: dict[str, PrivateKey] = {"tls": keys.tls, "node": keys.node, "audit": keys.audit}
    request = home / f"{site}.request"
    try:
        write_atomically(home / "ca.crt", to_pem(opened.authority))
        write_atomically(request, make_request(body, private, opened.enrolment.secret))
        write_atomically(settings_file, _client_yaml(opened, data).encode())
    except OSError as error:
        raise CannotWrite(f"cannot write in {home} ({error.strerror})") from error
    read_settings(ClientSettings, settings_file, {})
    return request


def _client_yaml(kit: Kit, data: Path) -> str:
    values = {
        "federation": kit.enrolment.federation,
        "site": kit.enrolment.site,
        "network": {"server": kit.settings.network.server, "ca": "ca.crt"},
        "keys": "keys",
        "state": "state",
        "data": str(data.absolute()),
        "model": json.loads(kit.settings.model.model_dump_json()),
    }
    written: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return "# One hospital's side of the federation. All settings: docs/settings.md.\n" + written
