"""Tells licences: of a file by its SPDX header, of a licence's own text by phrases that only it has.

For provenance, not for advice: what is not told for sure is None. Names are SPDX's (https://spdx.org/licenses); where a
licence's text cannot tell "only" from "or later", the name is the one without either.
"""

import re
from pathlib import PurePosixPath

_HEADER = re.compile(r"SPDX-License-Identifier:[ \t]*([A-Za-z0-9(][A-Za-z0-9.+() \t-]*)")
#: A header stands at the top; so far down it is looked for.
_TOP = 8192
_NAME = r"\(*[A-Za-z0-9][A-Za-z0-9.+-]*(?: WITH [A-Za-z0-9][A-Za-z0-9.+-]*)?\)*"
_EXPRESSION = re.compile(rf"{_NAME}(?: (?:AND|OR) {_NAME})*")

#: Each name with phrases that all stand in its text, or in the notice that the text asks for; in small letters, digits
#: and single blanks.
_PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Apache-2.0", ("apache license version 2 0 january 2004", "terms and conditions for use reproduction")),
    ("Apache-2.0", ("licensed under the apache license version 2 0 the license you may not use this file except",)),
    ("AGPL-3.0", ("gnu affero general public license version 3 19 november 2007",)),
    ("LGPL-3.0", ("gnu lesser general public license version 3 29 june 2007",)),
    ("LGPL-2.1", ("gnu lesser general public license version 2 1 february 1999",)),
    ("LGPL-2.0", ("gnu library general public license version 2 june 1991",)),
    ("GPL-3.0", ("gnu general public license version 3 29 june 2007",)),
    ("GPL-2.0", ("gnu general public license version 2 june 1991",)),
    ("MPL-2.0", ("mozilla public license version 2 0", "1 definitions")),
    ("MPL-2.0", ("is subject to the terms of the mozilla public license v 2 0",)),
    ("EPL-2.0", ("eclipse public license v 2 0", "the accompanying program is provided under the terms")),
    ("EPL-1.0", ("eclipse public license v 1 0", "the accompanying program is provided under the terms")),
    ("CDDL-1.0", ("common development and distribution license cddl version 1 0",)),
    ("EUPL-1.2", ("european union public licence v 1 2",)),
    ("BUSL-1.1", ("business source license 1 1", "change date")),
    ("SSPL-1.0", ("server side public license version 1 october 16 2018",)),
    ("Elastic-2.0", ("elastic license 2 0", "by using the software you agree to all of the terms and conditions")),
    ("MS-PL", ("microsoft public license ms pl", "this license governs use of the accompanying software")),
    ("Artistic-2.0", ("the artistic license 2 0", "everyone is permitted to copy and distribute verbatim copies")),
    ("MulanPSL-2.0", ("mulan permissive software license version 2",)),
    ("OFL-1.1", ("sil open font license version 1 1",)),
    ("Python-2.0", ("python software foundation license version 2",)),
    ("PostgreSQL", ("software and its documentation for any purpose without fee and without a written agreement",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("CC0-1.0", ("cc0 1 0 universal", "statement of purpose")),
    ("CC-BY-SA-4.0", ("attribution sharealike 4 0 international", "by exercising the licensed rights")),
    ("CC-BY-NC-4.0", ("attribution noncommercial 4 0 international", "by exercising the licensed rights")),
    ("CC-BY-4.0", ("creative commons attribution 4 0 international", "by exercising the licensed rights")),
    ("WTFPL", ("do what the fuck you want to public license",)),
    ("BSL-1.0", ("boost software license version 1 0 august 17th 2003",)),
    ("Zlib", ("altered source versions must be plainly marked as such and must not be misrepresented",
              "this notice may not be removed or altered from any source distribution")),
)  # fmt: skip
_MIT = "permission is hereby granted free of charge to any person obtaining a copy of this software"
_MIT_NOTICE = "the above copyright notice and this permission notice"
_BSD = "redistribution and use in source and binary forms with or without modification are permitted"
_BSD_ENDORSE = "used to endorse or promote products derived from this software"
_BSD_ADVERTISE = "all advertising materials mentioning features or use of this software"
_ISC = re.compile(
    r"permission to use copy modify and (?:or )?distribute this software for any purpose with or without fee is hereby"
)
_ISC_NOTICE = "provided that the above copyright notice and this permission notice appear in all copies"

_FILE_STEM = re.compile(
    r"(?:mit|apache|bsd|gpl|lgpl)?[-_.]?(?:un)?licen[sc]es?|copying|copyright|notice|patents", re.IGNORECASE
)
_FILE_SUFFIX = re.compile(r"(?:[-_.].{1,40})?", re.DOTALL)
_FILE_ENDINGS = frozenset({"", ".txt", ".md", ".markdown", ".rst", ".html", ".htm", ".adoc"})
#: REUSE (https://reuse.software/spec) keeps every licence's text in this folder, under its SPDX name.
_FOLDER = "LICENSES"


def spdx_of(text: str) -> str | None:
    """The licence that a file's header names by `SPDX-License-Identifier:`, blanks made single."""
    found = _HEADER.search(text, 0, _TOP)
    if found is None:
        return None
    # A comment's end, as in `-->`, may follow.
    expression = " ".join(found[1].split()).rstrip("-").rstrip()
    whole = _EXPRESSION.match(expression)
    return whole[0] if whole and whole[0].count("(") == whole[0].count(")") else None


def licence_of(text: str) -> str | None:
    """The licence whose text this is; several in one file are joined by AND in the order of their names."""
    if (header := spdx_of(text)) is not None:
        return header
    words = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    names = {name for name, phrases in _PHRASES if all(phrase in words for phrase in phrases)}
    names.update(name for name in (_mit(words), _bsd(words), _isc(words)) if name)
    return " AND ".join(sorted(names)) or None


def _mit(words: str) -> str | None:
    if _MIT not in words:
        return None
    return "MIT" if _MIT_NOTICE in words else "MIT-0"


def _bsd(words: str) -> str | None:
    if _BSD not in words:
        return None
    if _BSD_ADVERTISE in words:
        return "BSD-4-Clause"
    return "BSD-3-Clause" if _BSD_ENDORSE in words else "BSD-2-Clause"


def _isc(words: str) -> str | None:
    if not _ISC.search(words):
        return None
    return "ISC" if _ISC_NOTICE in words else "0BSD"


def is_licence_file(path: str) -> bool:
    """True for `LICENSE`, `COPYING.LESSER`, `MIT-LICENSE.txt`, `LICENSES/MIT.txt`; False for `license.py`."""
    file = PurePosixPath(path)
    if file.parent.name == _FOLDER and file.suffix in _FILE_ENDINGS - {""}:
        return True
    stem = file.name.removesuffix(file.suffix) if file.suffix.lower() in _FILE_ENDINGS else file.name
    found = _FILE_STEM.match(stem)
    if found is None or not _FILE_SUFFIX.fullmatch(stem, found.end()):
        return False
    return "." not in stem[found.end() :] or stem[found.end() :][1:].upper() in _DOTTED


#: `COPYING.LESSER`, `LICENSE.APACHE`: endings that are licences, unlike that of `license.py`.
_DOTTED = frozenset({"LESSER", "LIB", "APACHE", "APACHE2", "MIT", "BSD", "GPL", "GPL2", "GPL3", "LGPL", "MPL", "TXT"})
