"""Secrets in a text, found by our own rules, by place and rule: a value is never kept.

Two kinds of rule. Keys that tell themselves, by their prefix (`shapes`), their armour (`armour`) or the document they
stand in (`documents`). Literals given to a name such as `password` or `api_token` (`given`): they must look like a
secret, too (`values`), since most such literals are words. Literals that code puts together are judged as the text they
make.

What an optional scanner finds beyond these is in `scanner`, e-mail addresses are in `emails`.
"""

import hashlib

from jobs.dataset import armour, documents, given, shapes
from jobs.dataset.finds import Find
from jobs.dataset.needles import Needles

_RULES = (shapes, armour, documents, given)
#: All that any rule starts at, looked for at once.
_NEEDLES = Needles(
    [needle for rule in (shapes, armour, documents) for needle in rule.NEEDLES],
    [*given.NAMES, *armour.NEEDLES_IN_ANY_CASE],
)
#: Raised by hand when the code of a rule changes rather than its pattern.
_CODE = "3"


def find_secrets(text: str) -> list[Find]:
    """Every place that a rule takes for a secret; places may overlap."""
    places = _NEEDLES.places(text)
    return [find for rule in _RULES for find in rule.find(text, places)] if places else []


def rules_version() -> str:
    """Changes with every rule, so that nothing cached under older ones is taken for good."""
    patterns = [pattern for rule in _RULES for pattern in rule.PATTERNS]
    return hashlib.blake2b("\n".join([*patterns, _CODE]).encode(), digest_size=6).hexdigest()
