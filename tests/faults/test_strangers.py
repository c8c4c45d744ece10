"""Who is not admitted gets nothing, costs nothing, and learns nothing."""

import os
import signal
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from knowmine.client.federation.keys import SiteKeys
from knowmine.server.enrolment.authority import Authority
from knowmine.shared.trust.certificates import CLIENT, load_certificate, make_certificate, to_pem
from tests.faults.caller import signed, tls_client
from tests.faults.stage import Stage

from flwr.proto.fleet_pb2 import ActivateNodeRequest

JOIN = "/v1/fleet/activate-node"


@pytest.fixture(scope="module")
def open_stage(tmp_path_factory, nursery):
    """A server that waits for its sites, shared by the tests that do it no lasting harm."""
    made = Stage(tmp_path_factory.mktemp("open"), nursery, "lyon", "oslo")
    made.server = made.serve()
    yield made
    made.clear()


def refused(client, path="/openapi.json", **request):
    """Whether the connection came to nothing."""
    try:
        with client:
            client.post(path, **request)
    except httpx.TransportError:
        return True
    return False


def test_no_certificate(open_stage):
    """The handshake fails."""
    assert refused(tls_client(open_stage, None))


def test_tls_1_2(open_stage):
    """An admitted site that speaks an old TLS is refused."""

    def old(context):
        context.maximum_version = ssl.TLSVersion.TLSv1_2

    assert refused(tls_client(open_stage, "lyon", context_of=old))


def test_an_unknown_key(open_stage, tmp_path):
    """A certificate in lyon's name by another key."""
    SiteKeys.open(tmp_path / "keys", "lyon")

    def other(context):
        context.load_cert_chain(tmp_path / "keys" / "tls.crt", tmp_path / "keys" / "tls.key")

    assert refused(tls_client(open_stage, None, context_of=other))


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/docs",
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/runtime/pull-messages",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/send-app-heartbeat",
    ],
)
def test_routes_that_are_not_there(open_stage, path):
    """Even an admitted site with its node key finds nothing but the Fleet questions."""
    with tls_client(open_stage, "lyon") as client:
        with_key = client.post(path, headers=signed(open_stage, "lyon"))
        without = client.post(path)
    assert with_key.status_code in (401, 403, 404)
    assert without.status_code in (403, 404)


def test_the_node_key_of_another_site(open_stage):
    """Lyon's certificate with oslo's node key is refused, and the reason names lyon."""
    headers = signed(open_stage, "oslo")
    with tls_client(open_stage, "lyon") as client:
        answer = client.post(JOIN, headers=headers, content=b"")
    assert (answer.status_code, "lyon" in answer.text) == (403, True)


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_over_the_limit(open_stage, chunked):
    """413 for an admitted site, whether it says how long the body is or not."""
    body = (bytes(1_000_000) for _ in range(12)) if chunked else bytes(12_000_000)
    with tls_client(open_stage, "lyon") as client:
        try:
            answer = client.post(JOIN, headers=signed(open_stage, "lyon"), content=body)
            assert answer.status_code == 413
        except httpx.WriteError:  # it hung up before all was sent
            assert not chunked


def test_250_mb_of_anonymous_posts_cost_no_memory(open_stage):
    """With no certificate, and with one but no node key; 5 MB and 50 MB at a time."""
    server = open_stage.server
    before = server.rss_mb()

    def pour(site, size, times):
        for _ in range(times):
            refused(tls_client(open_stage, site), JOIN, content=bytes(size))

    pours = [(None, 5_000_000, 5), (None, 50_000_000, 2), ("oslo", 5_000_000, 5)]
    threads = [threading.Thread(target=pour, args=each) for each in (*pours, pours[1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.runs
    assert server.peak_mb() - before < 30


def test_connections_that_say_nothing(open_stage):
    """A hundred of them leave the server answering."""
    idle = [socket.create_connection(("127.0.0.1", open_stage.port)) for _ in range(100)]
    with tls_client(open_stage, "lyon") as client:
        status = client.get("/").status_code
    for connection in idle:
        connection.close()
    assert status == 403


def test_garbage_for_a_protobuf(open_stage):
    """Refused as the sender's mistake; the server goes on."""
    with tls_client(open_stage, "lyon") as client:
        answer = client.post(JOIN, headers=signed(open_stage, "lyon"), content=os.urandom(500))
    assert 400 <= answer.status_code < 500


def test_a_signature_of_long_ago(open_stage):
    """Headers that were overheard an hour ago open nothing."""
    headers = signed(open_stage, "lyon")
    headers["flwr-timestamp"] = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    request = ActivateNodeRequest(public_key=b"x", heartbeat_interval=60).SerializeToString()
    with tls_client(open_stage, "lyon") as client:
        answer = client.post(JOIN, headers=headers, content=request)
    assert answer.status_code == 401


def test_a_site_that_is_revoked_while_it_is_connected(stage):
    """Its next request is refused, and the run goes on without it."""
    two = stage("lyon", "oslo", run={"rounds": 3, "quorum": 0.5})
    server = two.serve()
    lyon, oslo = two.join("lyon", "--work", "600"), two.join("oslo")
    two.worked("lyon", "train 1")
    two.sites.revoke("lyon")
    assert [server.ended(), oslo.ended()] == [0, 0]
    rounds = two.summary()["per_round"]
    assert [r["sites"] for r in rounds] == [["oslo"]] * 3
    assert rounds[0]["refused"] == {"lyon": "the site was revoked"}
    lyon.signal(signal.SIGTERM)


def test_a_site_that_was_revoked_before(stage):
    """It keeps asking, says what to do, and leaves on SIGTERM."""
    two = stage("lyon", "oslo", run={"rounds": 1})
    two.sites.revoke("lyon")
    server, lyon = two.serve(), two.join("lyon")
    reason = two.told("lyon", "unreachable")[0]["reason"]
    oslo = two.join("oslo")
    assert [server.ended(), oslo.ended()] == [0, 0]
    lyon.signal(signal.SIGTERM)
    lyon.ended()
    assert "ask the coordinator" in reason


def test_a_site_whose_certificate_has_ended(stage):
    """The handshake fails; the site says that its certificate is over."""
    two = stage("lyon", "oslo", run={"rounds": 1})
    keys = two.home("lyon") / "keys"
    held = SiteKeys.load(keys, "lyon")
    past = datetime.now(UTC) - timedelta(days=400)
    old = make_certificate("lyon", held.tls, CLIENT, days=365, now=past)
    (keys / "tls.crt").write_bytes(to_pem(old))
    pinned = two.folder / "sites" / "lyon.json"
    change_json(pinned, {"certificates": [to_pem(old).decode()]})
    server, lyon, oslo = two.serve(), two.join("lyon"), two.join("oslo")
    assert "ended on" in two.told("lyon", "expiry")[0]["reason"]
    assert "ended on" in two.told("lyon", "unreachable")[0]["reason"]
    assert [server.ended(), oslo.ended()] == [0, 0]
    assert lyon.runs


def test_a_server_with_the_wrong_authority(stage, tmp_path):
    """The site leaves with 4 and names the certificate; it sent nothing."""
    one = stage("lyon")
    Authority.open(tmp_path / "other", "chest")
    (one.home("lyon") / "ca.crt").write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    one.serve()
    lyon = one.join("lyon")
    assert lyon.ended() == 4
    assert "does not vouch for" in lyon.text and "ask the coordinator" in lyon.text


def test_a_server_whose_certificate_has_ended(stage):
    """As above."""
    one = stage("lyon")
    authority = Authority.open(one.folder / "ca", "chest")
    (one.folder / "keys" / "server.crt").unlink()
    past = datetime.now(UTC) - timedelta(days=400)
    authority.certify_server(one.folder / "keys", ["localhost", "127.0.0.1"], past)
    server = one.serve()
    lyon = one.join("lyon")
    assert lyon.ended() == 4
    assert "certificate has expired" in lyon.text
    assert "ended on" in one.logged("expiry")[0]["reason"]
    assert server.runs


def test_a_site_that_meets_a_renewed_server_certificate(stage):
    """No restart on either side."""
    one = stage("lyon", run={"rounds": 2})
    server, lyon = one.serve(), one.join("lyon", "--work", "0.5")
    one.worked("lyon", "train 1")
    before = load_certificate(one.folder / "keys" / "server.crt")
    (one.folder / "keys" / "server.crt").unlink()
    new = Authority.open(one.folder / "ca", "chest").certify_server(
        one.folder / "keys", ["localhost", "127.0.0.1"]
    )
    assert new != before
    assert [server.ended(), lyon.ended()] == [0, 0]


def change_json(path, values):
    """Other values in a file of JSON."""
    import json

    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
