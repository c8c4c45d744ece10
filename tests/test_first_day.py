"""docs/first-day.md can be followed line by line, from an empty folder to masks of new images."""

import re
import shlex
from collections import defaultdict

import httpx
import pytest

from tests.followed import TINY, free_port, make_tiny, masked, page, said, started

# What the test changes, to end in seconds: few images, and a federation whose network is tiny and
# learns from its own guesses for two rounds of two steps, so that SAM is not needed and yet there
# is something to review. The ports of the two pages are free ones; no browser opens.
# ONNX takes half a minute to write and is tried by other tests.
QUICKER = ("onnx", "safetensors")
FEWER_IMAGES = ("--images 60 --masks 36", "--images 12 --masks 8")
MODEL = {
    "image_px": 32,
    "pretrained": False,
    "encoder": "resnet18",
    "decoder_channels": [8, 8, 8],
}
SMALL = {
    "plan": {**TINY["plan"], "method": "self-training", "model": MODEL},
    "run": {"rounds": 2},
}
STAYING = ("knowmine-server run", "knowmine-client run")
# Their words hang on the machine and the run; the pages they serve are asked instead.
NOT_COMPARED = (*STAYING, "knowmine-client check", "knowmine-server status", "in doubt")


def shown():
    """The page's commands in their order, each with the lines that it is shown to print."""
    for block in re.findall(
        r"^```console\n(.*?)^```", page("first-day.md"), re.MULTILINE | re.DOTALL
    ):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.splitlines()
            yield command, lines


@pytest.fixture(scope="module")
def day(tmp_path_factory):
    """The folder after the last command, and what each printed."""
    folder = tmp_path_factory.mktemp("day")
    staying, told = {}, defaultdict(str)
    try:
        for command, _ in shown():
            if command.startswith(STAYING):
                staying[command] = started(command, folder)
            elif "status" in command:
                told[command] = looked_on(command, folder)
                for line, process in staying.items():
                    # The server ends by itself; that sites then do too is the guide's to test.
                    if not line.startswith("knowmine-server"):
                        process.terminate()
                    told[line] = process.communicate(timeout=240)[0]
            elif " review " in command:
                told[command] = reviewed(command, folder)
            else:
                told[command] = said(command.replace(*FEWER_IMAGES).replace(*QUICKER), folder)
            if command.startswith("sed"):
                assert "image_px: 160" in (folder / "federation.yaml").read_text()
                make_tiny(folder / "federation.yaml", SMALL)
    finally:
        for process in staying.values():
            process.kill()
    return folder, told


def looked_on(command, folder):
    """What the coordinator's page and its metrics say once they are served."""
    port = free_port()
    server = started(f"{command} --port {port}", folder)
    try:
        # It says so before it listens; httpx asks again with longer and longer waits.
        assert server.stdout.readline()
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as client:
            answers = [client.get(f"http://127.0.0.1:{port}/{path}") for path in ("", "metrics")]
        return "\n".join(answer.raise_for_status().text for answer in answers)
    finally:
        server.kill()


def reviewed(command, folder):
    """The page that the printed address leads to."""
    server = started(f"{command} --no-browser --port 0", folder)
    try:
        url = next(found[0] for line in server.stdout if (found := re.search(r"http://\S+", line)))
        return httpx.get(url, follow_redirects=True).raise_for_status().text
    finally:
        server.kill()


def test_the_day_ends_with_a_mask_for_each_new_image(day):
    """Every command before it ended well, or the day would not have come so far."""
    folder, _ = day
    assert len(list((folder / "masks" / "masks").iterdir())) == 6
    assert (folder / "masks" / "areas.csv").is_file()


def test_both_hospitals_took_part_to_the_end(day):
    """The coordinator's command says so, and each was asked in both rounds."""
    _, told = day
    assert "Done: 2 rounds" in told["knowmine-server run fed/server.yaml"]
    for site in ("lyon", "bergen"):
        assert "round 2: asked to train" in told[f"knowmine-client run {site}/client.yaml"]


def test_the_two_pages_are_there(day):
    """The coordinator's with the sites that were admitted, and the clinician's."""
    _, told = day
    (status,) = (text for line, text in told.items() if "status" in line)
    (review,) = (text for line, text in told.items() if " review " in line)
    assert 'knowmine_certificate_expiry_seconds{site="lyon"}' in status and "bergen" in status
    assert "<title>" in review


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (command, line)
        for command, lines in shown()
        for line in lines
        if line != "..." and not any(words in f"$ {command}\n{line}" for words in NOT_COMPARED)
    ],
)
def test_what_a_command_is_shown_to_print_is_what_it_prints(day, command, line):
    """Up to its first colon; numbers, dates and fingerprints may differ."""
    _, told = day
    start = masked(line.replace(*QUICKER).partition(":")[0])
    assert any(masked(seen).startswith(start) for seen in told[command].splitlines())


def test_the_commands_are_those_of_a_posix_shell_without_tricks():
    """No pipe and no redirection, so each can be typed one by one."""
    for command, _ in shown():
        assert not {"|", ">", "&&", ";"} & set(shlex.split(command))
