"""Templates compiled once: what Jinja makes of the report's page is kept beside what else earlier builds worked out."""

import jinja2
import numpy as np
from jinja2.bccache import Bucket

from jobs.dataset.cache import Cache, Entry, key

_STAGE = "template"


class CompiledTemplates(jinja2.BytecodeCache):
    """Keeps the code of templates in a build's cache; Jinja tells by itself what another Python compiled."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def load_bytecode(self, bucket: Bucket) -> None:
        """Give the bucket what was kept of a template with the same text."""
        entry = self._cache.get(_key(bucket))
        if entry is not None:
            bucket.bytecode_from_string(entry.arrays["code"].tobytes())

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep what was compiled."""
        self._cache.put(_key(bucket), Entry({}, {"code": np.frombuffer(bucket.bytecode_to_string(), np.uint8)}))


def _key(bucket: Bucket) -> bytes:
    return key(_STAGE, bucket.key, bucket.checksum)
