"""A state folder is divided between two processes, and an older one loses nothing by it."""

import pytest

from knowmine.client.paths import prepare
from knowmine.shared.errors import CannotWrite, UsageError
from knowmine.shared.files import FolderLock

OLD = {
    "answers/update-1.safetensors": b"an answer",
    "feedback/0001.safetensors": b"a residue",
    "instance": b"who it was",
}


@pytest.fixture
def old(tmp_path):
    """A state folder as earlier versions left it."""
    for name, content in {**OLD, "audit/receipts.jsonl": b"receipts", "site/x": b"x"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def files_in(folder):
    """Content by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.stat().st_size
    }


def test_what_the_courier_kept_moves_into_its_part(old):
    """Answers, residues and who it was; the record and the vault's part stay where they are."""
    own = prepare(old)
    assert files_in(own) == OLD
    assert files_in(old / "audit") == {"receipts.jsonl": b"receipts"}
    assert files_in(old / "site") == {"x": b"x"}


def test_a_move_that_a_crash_cut_short_goes_on(old):
    """One rename each: whatever had moved stays, the rest follows."""
    (old / "courier").mkdir()
    (old / "answers").rename(old / "courier" / "answers")
    assert files_in(prepare(old)) == OLD


def test_what_is_newer_is_not_overwritten(old):
    """Both stay: nothing that was written is lost."""
    (old / "courier" / "answers").mkdir(parents=True)
    (old / "courier" / "answers" / "new").write_bytes(b"newer")
    own = prepare(old)
    assert (own / "answers" / "new").read_bytes() == b"newer"
    assert (old / "answers" / "update-1.safetensors").read_bytes() == b"an answer"


def test_nothing_moves_under_a_process_at_work(old):
    """It knows the old places."""
    lock = FolderLock(old)
    with pytest.raises(UsageError, match="another process"):
        prepare(old)
    lock.release()
    assert OLD.items() <= files_in(old).items()


def test_twice_is_once(old):
    """A start after a start finds all in its place."""
    assert files_in(prepare(old)) == files_in(prepare(old)) == OLD


def test_a_state_folder_that_cannot_be_made_is_said(tmp_path):
    """With the folder's name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="file"):
        prepare(tmp_path / "file" / "state")
