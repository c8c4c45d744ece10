"""Private keys: readable by their owner alone, and refused otherwise."""

import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowmine.shared.errors import CannotWrite, UsageError
from knowmine.shared.trust.keys import (
    audit_line,
    is_signed_by,
    load_audit_key,
    load_ec_key,
    make_audit_key,
    make_ec_key,
    node_line,
    read_secret,
    sign,
    write_secret,
)


def test_a_secret_is_readable_by_its_owner_alone(tmp_path):
    """Whatever the umask lets others do elsewhere."""
    before = os.umask(0)
    try:
        write_secret(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_secret_is_never_overwritten_unasked(tmp_path):
    """A key that is there may be the only copy."""
    write_secret(tmp_path / "key", b"first")
    with pytest.raises(UsageError, match="never overwritten"):
        write_secret(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"


def test_a_refused_secret_leaves_no_copy_behind(tmp_path):
    """The half-way file holds the secret too."""
    write_secret(tmp_path / "key", b"first")
    with pytest.raises(UsageError):
        write_secret(tmp_path / "key", b"second")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_crash_before_does_not_block_a_new_secret(tmp_path):
    """A leftover of a killed process is taken away."""
    (tmp_path / "key.tmp").write_bytes(b"half")
    write_secret(tmp_path / "key", b"whole")
    assert (tmp_path / "key").read_bytes() == b"whole"


def test_a_folder_that_is_missing_is_named(tmp_path):
    """The system's refusal becomes one line."""
    with pytest.raises(CannotWrite, match="No such file"):
        write_secret(tmp_path / "none" / "key", b"")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused_with_the_repair(tmp_path, mode):
    """As ssh does."""
    make_ec_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(UsageError, match=r"run `chmod 600 .*key`"):
        load_ec_key(tmp_path / "key")


def test_a_key_of_somebody_else_is_refused(tmp_path, monkeypatch):
    """They could change it at any time."""
    write_secret(tmp_path / "key", b"secret")
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(UsageError, match=rf"belongs to user {owner} .*chown"):
        read_secret(tmp_path / "key")


@pytest.mark.parametrize("openssh", [False, True])
def test_an_elliptic_key_comes_back(tmp_path, openssh):
    """In PEM as in OpenSSH's format."""
    key = make_ec_key(tmp_path / "key", openssh=openssh)
    assert load_ec_key(tmp_path / "key").public_key() == key.public_key()


def test_a_missing_key_says_what_to_do(tmp_path):
    """One line, not a traceback."""
    with pytest.raises(UsageError, match="missing: enrol or provision first"):
        load_ec_key(tmp_path / "key")


@settings(max_examples=25)
@given(content=st.binary(max_size=200))
def test_no_content_of_a_key_file_crashes(content, tmp_path_factory):
    """What is no key is called so."""
    path = tmp_path_factory.mktemp("keys") / "key"
    write_secret(path, content)
    for load in (load_ec_key, load_audit_key):
        with pytest.raises(UsageError, match="no private key"):
            load(path)


def test_one_kind_of_key_is_not_taken_for_another(tmp_path):
    """An audit key opens no connection, and the other way round."""
    make_ec_key(tmp_path / "ec")
    make_audit_key(tmp_path / "audit")
    with pytest.raises(UsageError, match="expected an elliptic-curve key"):
        load_ec_key(tmp_path / "audit")
    with pytest.raises(UsageError, match="expected an Ed25519 key"):
        load_audit_key(tmp_path / "ec")


@pytest.mark.parametrize("kind", ["node", "audit"])
def test_only_the_owner_signs(tmp_path, kind):
    """A signature holds for its message and its key, and for no other."""
    if kind == "node":
        pair = [make_ec_key(tmp_path / name, openssh=True) for name in "ab"]
        lines = [node_line(key) for key in pair]
        signature = sign(pair[0], b"said")
    else:
        audits = [make_audit_key(tmp_path / name) for name in "ab"]
        lines = [audit_line(key) for key in audits]
        signature = sign(audits[0], b"said")
    seen = [
        is_signed_by(lines[0], b"said", signature),
        is_signed_by(lines[0], b"Said", signature),
        is_signed_by(lines[1], b"said", signature),
    ]
    assert seen == [True, False, False]


@given(line=st.text(max_size=100), signature=st.text(max_size=50))
def test_whatever_is_no_signature_does_not_verify(line, signature):
    """Verifying never raises: the answer is no."""
    assert not is_signed_by(line, b"", signature)
