"""TLS 1.3 over real sockets: who gets in, and that changes need no restart."""

import shutil
import socket
import ssl
import threading
from contextlib import closing

import pytest

from knowmine.client.federation.keys import SiteKeys, adopt_renewal, renew_certificate
from knowmine.server.enrolment.authority import Authority
from knowmine.server.enrolment.enrolments import admit_request
from knowmine.server.network.trust import Trust
from knowmine.shared.trust.certificates import (
    CLIENT,
    load_certificate,
    make_certificate,
    to_der,
    to_pem,
)
from tests.provisioned import Federation


@pytest.fixture(params=["127.0.0.1", "localhost"])
def host(request):
    """By address, so without a server name in the handshake, and by name."""
    return request.param


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Lyon is admitted; oslo has keys and was not admitted. Tests work on copies."""
    made = Federation(tmp_path_factory.mktemp("federation"))
    made.provision()
    made.admit("lyon")
    made.enrol("oslo")
    return made


@pytest.fixture
def federation(whole, tmp_path):
    shutil.copytree(whole.root, tmp_path / "copy")
    return Federation(tmp_path / "copy")


@pytest.fixture
def server(federation):
    """Answers each connection with the name of the site that it knows it by."""
    trust = Trust(federation.folder / "keys", federation.sites)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            raw.settimeout(10)
            try:
                with trust.context.wrap_socket(raw, server_side=True) as connection:
                    der = connection.getpeercert(True)
                    connection.recv(1)
                    connection.sendall((federation.sites.site_of(der) or "nobody").encode())
            except OSError:
                raw.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def context_of(federation, site, maximum=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(federation.folder / "ca" / "ca.crt")
    if maximum:
        context.maximum_version = maximum
    if site:
        keys = federation.home(site) / "keys"
        context.load_cert_chain(keys / "tls.crt", keys / "tls.key")
    return context


def call(address, host, context, session=None):
    """What the server answers, its certificate and the session; raises where it hangs up."""
    raw = socket.create_connection(address, timeout=10)
    wrapped = context.wrap_socket(raw, server_hostname=host, session=session)
    with closing(wrapped) as connection:
        connection.sendall(b"?")
        answer = connection.recv(100).decode()
        if not answer:
            raise ConnectionError("the server hung up")
        return answer, connection.getpeercert(True), connection.session


def is_refused(address, host, context):
    try:
        call(address, host, context)
    except OSError:
        return True
    return False


def test_an_admitted_site_is_known_by_its_name(server, host, federation):
    """The pinned certificate is enough."""
    assert call(server, host, context_of(federation, "lyon"))[0] == "lyon"


def test_strangers_are_refused(server, host, federation):
    """Without a certificate, with one that was not admitted, and below TLS 1.3."""
    tls12 = context_of(federation, "lyon", maximum=ssl.TLSVersion.TLSv1_2)
    contexts = [context_of(federation, None), context_of(federation, "oslo"), tls12]
    assert [is_refused(server, host, context) for context in contexts] == [True] * 3


def test_a_certificate_of_the_same_name_is_refused(server, host, federation, tmp_path):
    """The key is pinned, not the name."""
    shutil.rmtree(federation.home("oslo"))
    SiteKeys.open(federation.home("oslo") / "keys", "lyon")
    assert is_refused(server, host, context_of(federation, "oslo"))


def test_an_admitted_site_cannot_vouch_for_others(server, host, federation):
    """A certificate that lyon's key signed is a stranger's."""
    lyon = SiteKeys.load(federation.home("lyon") / "keys", "lyon")
    keys = federation.home("oslo") / "keys"
    oslo = SiteKeys.load(keys, "oslo")
    by_lyon = (lyon.certificate, lyon.tls)
    vouched = make_certificate("oslo", oslo.tls, CLIENT, issuer=by_lyon)
    (keys / "tls.crt").write_bytes(to_pem(vouched) + to_pem(lyon.certificate))
    assert is_refused(server, host, context_of(federation, "oslo"))


def test_the_server_certificate_opens_no_door(server, host, federation):
    """What the authority signed is for serving alone."""
    context = context_of(federation, None)
    keys = federation.folder / "keys"
    context.load_cert_chain(keys / "server.crt", keys / "server.key")
    assert is_refused(server, host, context)


def test_admitting_needs_no_restart(server, host, federation):
    """Refused before, known after."""
    context = context_of(federation, "oslo")
    before = is_refused(server, host, context)
    admit_request(federation.home("oslo") / "oslo.request", federation.folder)
    assert (before, call(server, host, context)[0]) == (True, "oslo")


def test_revoking_needs_no_restart(server, host, federation):
    """The next handshake fails."""
    context = context_of(federation, "lyon")
    before = call(server, host, context)[0]
    federation.sites.revoke("lyon")
    assert (before, is_refused(server, host, context)) == ("lyon", True)


def test_the_server_gives_no_session_to_come_back_with(server, host, federation):
    """A resumed session is not verified again, so a revoked site could use it."""
    context = context_of(federation, "lyon")
    session = call(server, host, context)[2]
    assert session is None or not session.has_ticket


def test_old_and_new_certificate_serve_during_a_renewal(server, host, federation):
    """Before the switch the old one, after it the new one; no moment without."""
    keys = federation.home("lyon") / "keys"
    federation.sites.renew("lyon", renew_certificate(keys, "lyon"))
    before = call(server, host, context_of(federation, "lyon"))[0]
    old = to_der(load_certificate(keys / "tls.crt"))
    adopt_renewal(keys, "lyon")
    after = call(server, host, context_of(federation, "lyon"))[0]
    assert (before, after) == ("lyon", "lyon")
    assert to_der(load_certificate(keys / "tls.crt")) != old


def test_a_renewed_server_certificate_is_shown_without_a_restart(server, host, federation):
    """Sites trust the authority, so they take it as it comes."""
    context = context_of(federation, "lyon")
    old = call(server, host, context)[1]
    authority = Authority.open(federation.folder / "ca", "chest")
    new = authority.certify_server(
        federation.folder / "keys", ["127.0.0.1", "localhost", "b.example.org"]
    )
    assert old != to_der(new) == call(server, host, context)[1]


def test_a_damaged_file_shuts_out_its_site_alone(server, host, federation):
    """And it is named."""
    (federation.folder / "sites" / "oslo.json").write_text("{")
    sites = federation.sites
    assert call(server, host, context_of(federation, "lyon"))[0] == "lyon"
    assert (list(sites.sites()), list(sites.damaged)) == (["lyon"], ["oslo.json"])


def test_a_broken_server_certificate_does_not_stop_the_server(server, host, federation):
    """The one in memory goes on while the files are repaired."""
    (federation.folder / "keys" / "server.crt").write_text("broken")
    assert call(server, host, context_of(federation, "lyon"))[0] == "lyon"


def test_a_broken_server_certificate_does_not_delay_a_revocation(server, host, federation):
    """Better no connection than one by the old list."""
    (federation.folder / "keys" / "server.crt").write_text("broken")
    federation.sites.revoke("lyon")
    assert is_refused(server, host, context_of(federation, "lyon"))
