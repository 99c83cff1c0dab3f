"""Makes git repositories with the statistics of real ones: for benchmarks and tests where no network is at hand.

Run as: python benchmarks/synthetic_repository.py requests FOLDER

`requests` and `celery` have as many commits, merges, files, versions and bytes as psf/requests and celery/celery had on
2026-11-22; `huge` has 200,000 commits; `small` is made in a second. The text is code by a small grammar over English
words: identifiers repeat inside a file and differ between files, so that tokenising (about 3.5 bytes a token with
StarCoder2's), compression and shingles behave as with code. Planted: renames of files and folders, near copies,
e-mail addresses, secrets that the history forgets, licences, lock files, pictures, a symlink. It does not imitate the
meaning of code, nor work on several branches at once for long.

The same size gives the same commit ids on every machine: chances come from `random()` of keyed generators alone, the
one method whose sequence Python promises to keep. All versions of a file follow one another in the stream, since git
fast-import stores a blob as its difference to the blob before.
"""

import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The statistics of a repository."""

    commits: int
    #: Share of commits that are merges.
    merges: float
    #: At the newest commit.
    files: int
    #: Of the newest commit's files that are text.
    text_bytes: int
    #: Of the newest commit's pictures.
    binary_bytes: int
    #: Versions of files in the whole history.
    versions: int
    tags: int
    #: The higher, the more the history is about few files, which are also the largest ones.
    popularity: float = 2.0
    #: A file's size goes with this power of how often it changes.
    size_by_versions: float = 0.4


SIZES = {
    "small": Profile(commits=300, merges=0.1, files=40, text_bytes=160_000, binary_bytes=30_000, versions=500, tags=5),
    "requests": Profile(
        commits=6_500, merges=0.25, files=130, text_bytes=1_550_000, binary_bytes=2_900_000, versions=7_700, tags=162
    ),
    "celery": Profile(
        commits=13_000,
        merges=0.074,
        files=823,
        text_bytes=5_100_000,
        binary_bytes=400_000,
        versions=35_200,
        tags=200,
        popularity=2.4,
        size_by_versions=0.74,
    ),
    "huge": Profile(
        commits=200_000,
        merges=0.08,
        files=3_000,
        text_bytes=12_000_000,
        binary_bytes=500_000,
        versions=260_000,
        tags=500,
    ),
    # As `huge` with 50,000 commits, and twice the files and their text: what bytes cost without commits.
    "wide": Profile(
        commits=50_000,
        merges=0.08,
        files=6_000,
        text_bytes=24_000_000,
        binary_bytes=500_000,
        versions=65_000,
        tags=500,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """A repository that was made."""

    git_dir: Path
    head: str
    commits: int
    files: int
    versions: int
    version_bytes: int
    #: Every secret that the history holds: none may be found in what is made of it.
    secrets: tuple[str, ...]
    addresses: tuple[str, ...]


# ---- Words -----------------------------------------------------------------------------------------------------------

NOUNS = """
account adapter address agent alias archive argument array asset attribute audit author backend backup balance batch
binding block body boundary branch bridge broker bucket budget buffer builder bundle button cache calendar callback
canvas capacity card catalog category certificate channel chapter character charge check child chunk circle city claim
client clock cluster code collection color column command comment commit component condition config connection
constraint container content context control cookie copy core corner count counter country course cover credential
currency cursor customer cycle dashboard database date deadline decimal decoder default delay delta dependency depth
design detail device dialog dictionary digest dimension directory discount disk display distance document domain
draft driver duration edge editor element encoder endpoint engine entry environment error event example exception
executor expense export expression extension factory failure feature feed field figure file filter flag folder font
form format frame function gateway generator graph grid group guard handler hash header height history hook host icon
identity image index input instance interval invoice issue item job journal key keyword label language layer
layout leaf ledger length level library license limit line link list listener loader location lock log loop machine
manifest map margin marker mask match matrix measure member memory menu merge message method metric migration mirror
mode model module monitor month mount mutex name namespace network node note notice number object offset operator
option order origin outcome output owner package page pair panel paragraph parameter parent parser partition password
patch path pattern payload payment peer period permission phase picture pipeline pixel place plan platform player
plugin point policy pool port position prefix preview price printer priority process product profile program project
promise prompt property protocol provider proxy query queue quota range rate ratio reader reason receipt record region
registry release remote render report request resource response result retry review right role root rotation route
row rule runner sample scale scanner schedule schema scope score screen script search season section segment selector
sender sensor sentence sequence series server service session setting shape shard share sheet signal signature size
slice slot snapshot socket source space span stack stage state statement station status step storage stream string
structure style subject suffix summary switch symbol table tag target task team template tenant term test theme thread
threshold ticket timer title token tool topic total trace track transaction transfer tree trigger tuple type unit
update upload usage user validator value variable vector vendor version view volume wallet warning watcher weight
widget width window word worker wrapper writer zone
""".split()  # noqa: SIM905 - read more easily
VERBS = """
accept add adjust allow apply append assign attach bind build cancel check clean clear close collect combine compare
compute confirm connect consume convert copy count create decode delete deliver detach detect disable drain drop
emit enable encode ensure escape estimate evaluate expand export extract fetch fill filter find finish flush follow
forward freeze generate guess handle ignore import insert inspect install join keep list load lock lookup mark match
measure merge migrate move normalize notify observe open pack parse patch pause pick poll prepare print produce pull
push raise read rebuild receive record reduce refresh register reject release reload remove rename render repair
replace report request reset resolve restore resume retry return revert rotate round run sample save scan schedule
search select send serialize set shift skip sort split start stop store strip submit sum swap sync tag test throttle
toggle track transform trim unlock unpack update upload validate verify visit wait walk warn watch wrap write yield
""".split()  # noqa: SIM905 - read more easily
ADJECTIVES = """
active actual ambiguous ancient atomic available average bare basic binary broken busy cached cheap clean closed common
compact complete concrete constant correct current custom deep default dense direct dirty distinct double dry dynamic
early eager empty exact expired explicit external fast final first fixed flat foreign frozen full general global hidden
huge idle implicit inner internal invalid large last late lazy legacy light linear local long loose lower main manual
maximal minimal missing mixed mutable narrow native nested new next numeric odd old open optional ordered outer partial
pending plain previous primary private public pure quick quiet random raw recent relative remote safe secondary shallow
shared short simple single slow small sorted spare sparse stable stale static strict strong sudden temporary thin tiny
total trusted unique unknown unsafe unused upper valid virtual visible weak whole wide
""".split()  # noqa: SIM905 - read more easily
GIVEN = "Ada Ben Chloe Dario Elif Farid Greta Hana Ivo Jana Kofi Lena Mateo Nadia Omar Priya Rosa Sven Tomas".split()  # noqa: SIM905
FAMILY = "Alvarez Brandt Costa Dupont Eriksen Fischer Garcia Haddad Ivanov Jensen Kowalski Lopez Moreau Okafor".split()  # noqa: SIM905

MIT = """MIT License

Copyright (c) 2012 The authors

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


class Chance:
    """Chances that depend on a key alone."""

    def __init__(self, *key: object) -> None:
        # Seeding by text goes through SHA-512: the same in every process.
        self.random = random.Random(" ".join(map(str, key))).random  # noqa: S311 - nothing secret is made

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[int(self.random() * len(options))]

    def between(self, low: int, high: int) -> int:
        """A whole number, both ends included."""
        return low + int(self.random() * (high - low + 1))

    def happens(self, probability: float) -> bool:
        """True so often."""
        return self.random() < probability

    def near_one(self, spread: float) -> float:
        """A factor of lognormal distribution (Box-Muller)."""
        return math.exp(spread * math.sqrt(-2 * math.log(1 - self.random())) * math.cos(2 * math.pi * self.random()))

    def text(self, letters: str, length: int) -> str:
        """Letters without a pattern."""
        return "".join(self.pick(letters) for _ in range(length))

    def data(self, length: int) -> bytes:
        """Bytes without a pattern: what does not compress."""
        return bytes(int(self.random() * 256) for _ in range(length))


# ---- The language ----------------------------------------------------------------------------------------------------


class Writer:
    """Writes the text of one file, with the words of its subject."""

    def __init__(self, *key: object) -> None:
        self.chance = chance = Chance("words", *key)
        self._nouns = [chance.pick(NOUNS) for _ in range(28)]
        self._verbs = [chance.pick(VERBS) for _ in range(14)]
        self._adjectives = [chance.pick(ADJECTIVES) for _ in range(10)]
        self._names = [self._new_name() for _ in range(36)]
        self._types = [chance.pick(self._nouns).title() + chance.pick(NOUNS).title() for _ in range(6)]
        self._serial = 0

    def _new_name(self) -> str:
        shape, noun = self.chance.random(), self.chance.pick(self._nouns)
        if shape < 0.45:
            return noun
        if shape < 0.75:
            return f"{self.chance.pick(self._adjectives)}_{noun}"
        return f"{noun}_{self.chance.pick(self._nouns)}"

    def sentence(self) -> str:
        """A sentence of English sorts."""
        pick = self.chance.pick
        noun, other, third = pick(self._nouns), pick(NOUNS), pick(self._nouns)
        verb, adjective = pick(VERBS), pick(ADJECTIVES)
        return pick(
            (
                f"The {adjective} {noun} must {verb} every {other} before the {third} does.",
                f"{verb.capitalize()} the {noun} of this {other}, unless its {third} is {adjective}.",
                f"A {noun} without {other} is {adjective}: we {verb} its {third} instead.",
                f"Returns the {adjective} {noun} that {other} and {third} share.",
                f"When the {noun} is {adjective}, {pick(VERBS)} and {verb} the {other} once more.",
                f"It is {adjective} to {verb} {other}s by hand, since {noun}s {pick(VERBS)} on their own.",
                f"See the {noun} {third} for how {adjective} {other}s are {verb}ed.",
                f"Note that {noun}s may {verb} a {pick(ADJECTIVES)} {other} at any time.",
            )
        )

    def expression(self, depth: int = 2) -> str:  # noqa: PLR0911 - a rule of the grammar each
        """A value."""
        pick, kind = self.chance.pick, self.chance.random()
        if depth == 0 or kind < 0.26:
            return pick(self._names)
        if kind < 0.40:
            return f"{pick(('self', pick(self._names)))}.{pick(self._names)}"
        if kind < 0.50:
            return str(self.chance.between(0, 10 ** self.chance.between(1, 4)))
        if kind < 0.58:
            return f'"{pick(self._nouns)}{pick(("", "-", "/", ": ", "."))}{pick(NOUNS)}"'
        if kind < 0.80:
            return self.call(depth)
        if kind < 0.90:
            return f"{self.expression(depth - 1)} {pick('+-*/%')} {self.expression(depth - 1)}"
        if kind < 0.95:
            return f'{pick(self._names)}["{pick(self._nouns)}"]'
        return f'f"{pick(self._nouns)} {{{pick(self._names)}}} {pick(ADJECTIVES)}"'

    def call(self, depth: int) -> str:
        """A call of a function or method."""
        pick = self.chance.pick
        values = [self.expression(depth - 1) for _ in range(self.chance.between(0, 3))]
        if self.chance.happens(0.25):
            values.append(f"{pick(self._names)}={self.expression(depth - 1)}")
        owner = pick(("self.", "", "", f"{pick(self._names)}."))
        return f"{owner}{pick(self._verbs)}_{pick(self._nouns)}({', '.join(values)})"

    def condition(self) -> str:
        """Something true or false."""
        pick = self.chance.pick
        return pick(
            (
                f"{self.expression(1)} {pick(('==', '!=', '<', '>=', 'in', 'is not'))} {pick(self._names)}",
                f"not {self.expression(1)}",
                f"{pick(self._names)} is None",
                f"isinstance({pick(self._names)}, {pick(self._types)})",
            )
        )

    def simple(self) -> str:
        """A statement of one line that can stand, or lack, anywhere in a body."""
        pick, kind = self.chance.pick, self.chance.random()
        if kind < 0.45:
            return f"{pick(self._names)} = {self.expression()}"
        if kind < 0.62:
            return f"self.{pick(self._names)} = {self.expression()}"
        if kind < 0.67:
            return f"{pick(self._names)} += {self.expression(1)}"
        return self.call(2)

    def body(self, indent: int, depth: int) -> list[str]:
        """Statements, the last of which can end a function."""
        lines: list[str] = []
        for _ in range(self.chance.between(2, 5)):
            lines += self._statement(indent, depth)
        return lines

    def _statement(self, indent: int, depth: int) -> list[str]:
        blank, kind, pick = " " * indent, self.chance.random(), self.chance.pick
        if depth == 0 or kind < 0.58:
            return [blank + self.simple()]
        inner = self.body(indent + 4, depth - 1)
        if kind < 0.64:
            return [f"{blank}# {self.sentence()}", blank + self.simple()]
        if kind < 0.84:
            return [f"{blank}if {self.condition()}:", *inner]
        if kind < 0.92:
            return [f"{blank}for {pick(self._names)} in {self.expression(1)}:", *inner]
        if kind < 0.96:
            failure = [f"{blank}except {pick(self._types)}Error as error:", f"{blank}    {self.simple()}"]
            return [f"{blank}try:", *inner, *failure]
        return [f"{blank}with {self.call(1)} as {pick(self._names)}:", *inner]

    def function(self, indent: int = 0) -> list[str]:
        """A function or method; no two of a file have one name."""
        pick, blank = self.chance.pick, " " * indent
        self._serial += 1
        name = f"{pick(self._verbs)}_{pick(self._nouns)}_{pick(NOUNS)}"
        taken = ["self"] * bool(indent) + sorted({pick(self._names) for _ in range(self.chance.between(0, 4))})
        lines = [f"{blank}def {name}({', '.join(taken)}):"]
        if self.chance.happens(0.6):
            lines.append(f'{blank}    """{self.sentence()}"""')
        return [*lines, *self.body(indent + 4, 2), f"{blank}    return {self.expression()}"]

    def python_block(self) -> list[str]:
        """A class, a function or a table."""
        kind = self.chance.random()
        if kind < 0.12:
            entries = [
                f'    "{self.chance.pick(NOUNS)}": {self.expression(1)},' for _ in range(self.chance.between(3, 9))
            ]
            return [f"{self._new_name().upper()} = {{", *entries, "}"]
        if kind < 0.6:
            return self.function()
        lines = [
            f"class {self.chance.pick(self._types)}{self.chance.pick(NOUNS).title()}({self.chance.pick(self._types)}):"
        ]
        lines.append(f'    """{self.sentence()}"""')
        for _ in range(self.chance.between(2, 4)):
            lines += ["", *self.function(4)]
        return lines

    def script_block(self) -> list[str]:
        """A function of JavaScript."""
        name = (
            f"{self.chance.pick(self._verbs)}{self.chance.pick(self._nouns).title()}{self.chance.pick(NOUNS).title()}"
        )
        lines = [f"  {'const ' * self.chance.happens(0.3)}{self._flat()};" for _ in range(self.chance.between(4, 14))]
        return [f"// {self.sentence()}", f"function {name}({self.chance.pick(self._names)}) {{", *lines, "}"]

    def _flat(self) -> str:
        return f"{self.chance.pick(self._names)} = {self.expression().replace('self.', 'this.')}"

    def prose_block(self) -> list[str]:
        """A section of a page."""
        title = (
            f"{self.chance.pick(ADJECTIVES).title()} {self.chance.pick(self._nouns)}s and {self.chance.pick(NOUNS)}s"
        )
        lines = [f"## {title}", ""]
        for _ in range(self.chance.between(1, 4)):
            lines += [*(self.sentence() for _ in range(self.chance.between(2, 5))), ""]
        if self.chance.happens(0.4):
            lines += ["```python", *(self.simple() for _ in range(self.chance.between(1, 4))), "```", ""]
        return lines[:-1]

    def settings_block(self) -> list[str]:
        """A section of YAML."""
        lines = [f"{self._new_name()}:"]
        return lines + [
            f"  {self._new_name()}: {self.chance.pick(NOUNS)}-{self.chance.between(0, 999)}" for _ in range(8)
        ]


_BLOCKS = {
    "py": Writer.python_block,
    "js": Writer.script_block,
    "md": Writer.prose_block,
    "yml": Writer.settings_block,
}
#: A line that can be replaced, doubled or lack without a change of what surrounds it.
_SIMPLE = re.compile(r" +(?:[a-z_][\w.]* \+?= .*|[a-z_][\w.]*\(.*\))")


class Text:
    """A file as it changes: blocks of lines, edited as people do."""

    def __init__(self, kind: str, writer: Writer, head: Sequence[str]) -> None:
        self._make = _BLOCKS[kind]
        self._writer = writer
        self._blocks = [list(head), self._make(writer)]
        self._joined = ["\n".join(block) for block in self._blocks]
        self._gap = "\n\n\n" if kind == "py" else "\n\n"

    @property
    def size(self) -> int:
        """Characters, about."""
        return sum(map(len, self._joined)) + 3 * len(self._joined)

    def content(self, more: Sequence[str] = ()) -> bytes:
        """The file's bytes, with these lines at its end."""
        return (self._gap.join([*self._joined, *more]) + "\n").encode()

    def edit(self, size: int) -> None:
        """Change some lines, then add or take away blocks until it is about so large."""
        before = list(self._joined)
        left = self._writer.chance.between(1, 3)
        while left > 0 or self._joined == before:
            self._touch(self._writer.chance.between(1, len(self._blocks) - 1))
            left -= 1
            if left < -20:  # nothing but lines that are never touched
                self._blocks.append(self._make(self._writer))
                self._joined.append("\n".join(self._blocks[-1]))
        while self.size < size:
            place = self._writer.chance.between(1, len(self._blocks))
            self._blocks.insert(place, self._make(self._writer))
            self._joined.insert(place, "\n".join(self._blocks[place]))
        if self.size > 1.2 * size and len(self._blocks) > 3:
            place = self._writer.chance.between(1, len(self._blocks) - 1)
            del self._blocks[place], self._joined[place]

    def _touch(self, place: int) -> None:
        block, chance = self._blocks[place], self._writer.chance
        line = int(chance.random() * len(block))
        if not _SIMPLE.fullmatch(block[line]):
            self._amend(block, line)
        else:
            blank = block[line][: -len(block[line].lstrip())]
            # The line of a body that has no other is replaced, never taken away.
            sibling = line > 0 and _SIMPLE.fullmatch(block[line - 1]) and not block[line - 1].startswith(blank + " ")
            alone = not (sibling and block[line - 1].startswith(blank))
            block[line : line + 1] = [blank + self._writer.simple() for _ in range(chance.between(alone, 2))]
        self._joined[place] = "\n".join(block)

    def _amend(self, block: list[str], line: int) -> None:
        text = block[line]
        if text.endswith(".") and text[0].isupper():
            block[line] = self._writer.sentence()
        elif ": " in text and text.startswith("  ") and text[-1].isdigit():
            block[line] = re.sub(r"\d+$", str(self._writer.chance.between(0, 999)), text)


# ---- What happens, commit by commit ----------------------------------------------------------------------------------


@dataclass(slots=True)
class File:
    """A file from its first commit to its last."""

    number: int
    kind: str
    path: str
    versions: int = 0
    #: Mark of its first version in the stream.
    mark: int = 0
    size: float = 0.0
    #: Number of the file that it began as a copy of.
    twin: int | None = None
    alive: bool = True


@dataclass(frozen=True, slots=True)
class Write:
    """A version of a file is stored."""

    file: File
    version: int
    path: str

    def order(self) -> str:
        """The line that fast-import takes."""
        mode = "120000" if self.file.kind == "link" else "100644"
        return f"M {mode} :{self.file.mark + self.version} {self.path}"


@dataclass(frozen=True, slots=True)
class Move:
    """A path takes another name."""

    before: str
    after: str

    def order(self) -> str:
        """The line that fast-import takes."""
        return f"R {self.before} {self.after}"


@dataclass(frozen=True, slots=True)
class Remove:
    """A path goes."""

    path: str

    def order(self) -> str:
        """The line that fast-import takes."""
        return f"D {self.path}"


Operation = Write | Move | Remove


@dataclass(frozen=True, slots=True)
class Happening:
    """A commit; its parents are numbers of commits."""

    parents: tuple[int, ...]
    operations: tuple[Operation, ...]
    branch: bool


@dataclass
class _Branch:
    tip: int
    left: int
    files: set[int] = field(default_factory=set)
    #: What the main line touched meanwhile, and the branch therefore leaves alone: merges have no conflicts.
    others: set[int] = field(default_factory=set)
    operations: list[Operation] = field(default_factory=list)


#: Kinds and paths of the files with which every repository begins.
_FIRST = (
    ("licence", "LICENSE"),
    ("py", "setup.py"),
    ("md", "README.md"),
    ("people", "AUTHORS.md"),
    ("lock", "poetry.lock"),
    ("link", "docs-link"),
    ("md", "HISTORY.md"),
)


class Plan:
    """Which files every commit creates, changes, renames and removes."""

    def __init__(self, profile: Profile, name: str) -> None:
        self._profile = profile
        self._chance = Chance("plan", name)
        self._paths: set[str] = set()
        self._live: list[File] = []
        self._branch: _Branch | None = None
        self._moves = [(0.3, "docs/", "doc/"), (0.55, "lib/", "src/lib/"), (0.8, "examples/", "samples/")]
        self._written = 0
        self.files: list[File] = []
        self.happenings: list[Happening] = []
        merges, tip = 0, -1
        while len(self.happenings) < profile.commits:
            number = len(self.happenings)
            if self._branch is None and number > 5 and merges < profile.merges * number:
                self._branch = _Branch(tip, self._chance.pick((1, 1, 2, 3)))
            if self._branch is not None and self._branch.left == 0:
                self.happenings.append(Happening((tip, self._branch.tip), tuple(self._branch.operations), branch=False))
                merges, tip, self._branch = merges + 1, number, None
            elif self._branch is not None and self._chance.happens(0.7):
                self._commit_on(self._branch, number)
            else:
                touched = self._branch.files if self._branch else set()
                operations, files = self._operations(number, touched)
                self.happenings.append(Happening((tip,) if number else (), tuple(operations), branch=False))
                tip = number
                if self._branch is not None:
                    self._branch.others |= files

    def _commit_on(self, branch: _Branch, number: int) -> None:
        operations, files = self._operations(number, branch.others)
        self.happenings.append(Happening((branch.tip,), tuple(operations), branch=True))
        branch.tip, branch.left = number, branch.left - 1
        branch.files |= files
        branch.operations += operations

    def _operations(self, number: int, locked: set[int]) -> tuple[list[Operation], set[int]]:
        done = number / self._profile.commits
        if self._branch is None and self._moves and done > self._moves[0][0]:
            return self._move_folder(*self._moves.pop(0)[1:]), set()
        operations: list[Operation] = []
        files: set[int] = set()
        wanted = self._profile.files * (0.15 + 0.85 * done**0.6)
        for _ in range(min(round(wanted) - len(self._live), 5 if number else self._profile.files)):
            file = self._create()
            files.add(file.number)
            operations.append(self._write(file))
        # The rest of the versions are spread evenly over the commits that are left.
        share = (self._profile.versions - self._written) / max(1, self._profile.commits - number)
        share /= 1 - self._profile.merges
        while not operations or self._chance.happens(1 - 1 / max(1.0, share)):
            file = self._popular()
            if file.number in locked or file.number in files:
                if operations or self._chance.happens(0.05):
                    break
                continue
            files.add(file.number)
            operations += self._change(file)
        return operations, files

    def _create(self) -> File:
        number = len(self.files)
        file = File(number, *self._place(number))
        if number > 30 and file.kind == "py" and self._chance.happens(0.04):
            original = self._chance.pick(self._live)
            file.twin = original.number if original.kind == "py" else None
        file.size = self._chance.near_one(0.7)
        self.files.append(file)
        self._live.append(file)
        return file

    def _place(self, number: int) -> tuple[str, str]:
        """Kind and path of a new file."""
        if number < len(_FIRST):
            return _FIRST[number]
        if number % 11 == 7:
            kind, folder, ending = "picture", "assets", "png"
        else:
            kind, folder, ending = self._chance.pick(
                (("py", "lib", "py"),) * 10
                + (("py", "tests", "py"),) * 4
                + (("md", "docs", "md"),) * 3
                + (("js", "web", "js"), ("yml", "config", "yml"), ("py", "examples", "py"))
            )
        while True:
            area = self._chance.pick(NOUNS[:40]) if folder in {"lib", "docs"} else ""
            stem = f"{self._chance.pick(NOUNS)}_{self._chance.pick(NOUNS)}"
            path = "/".join(filter(None, (folder, area, f"{'test_' * (folder == 'tests')}{stem}.{ending}")))
            # Folders are moved on the way: their first names and later ones must not meet.
            if path not in self._paths:
                self._paths.add(path)
                return kind, path

    def _popular(self) -> File:
        return self._live[int(len(self._live) * self._chance.random() ** self._profile.popularity)]

    def _write(self, file: File) -> Write:
        file.versions += 1
        self._written += 1
        return Write(file, file.versions - 1, file.path)

    def _change(self, file: File) -> list[Operation]:
        if file.kind in {"licence", "link", "picture"} and file.versions:
            return [Remove(self._remove(file))] if file.kind == "picture" and self._chance.happens(0.01) else []
        if file.number > 6 and self._chance.happens(0.008):
            before = file.path
            while file.path in self._paths:
                folder, _, name = file.path.rpartition("/")
                file.path = f"{folder}/{self._chance.pick(ADJECTIVES)}_{name}"
            self._paths.add(file.path)
            return [Move(before, file.path), *([self._write(file)] if self._chance.happens(0.5) else [])]
        if file.number > 6 and self._chance.happens(0.006):
            return [Remove(self._remove(file))]
        return [self._write(file)]

    def _remove(self, file: File) -> str:
        file.alive = False
        self._live.remove(file)
        return file.path

    def _move_folder(self, before: str, after: str) -> list[Operation]:
        inside = [file for file in self._live if file.path.startswith(before)]
        for file in inside:
            file.path = after + file.path.removeprefix(before)
            self._paths.add(file.path)
        return [Move(before.rstrip("/"), after.rstrip("/"))] if inside else []


# ---- The stream ------------------------------------------------------------------------------------------------------


class _Stream:
    """What git fast-import reads."""

    def __init__(self, profile: Profile, name: str, out: IO[bytes]) -> None:
        self._profile = profile
        self._name = name
        self._out = out
        self.plan = Plan(profile, name)
        self.secrets: list[str] = []
        self.bytes = 0
        chance = Chance("people", name)
        self._people = [self._person(chance) for _ in range(max(5, profile.commits // 40))]
        self.addresses = sorted({address for _, address in self._people[:40]})
        self._scale()

    @staticmethod
    def _person(chance: Chance) -> tuple[str, str]:
        given, family = chance.pick(GIVEN), chance.pick(FAMILY)
        domain = f"{chance.pick(NOUNS)}-{chance.pick(NOUNS)}-mail.net"
        return f"{given} {family}", f"{given}.{family}{chance.between(1, 99)}@{domain}".lower()

    def _scale(self) -> None:
        """Give marks, and sizes that add up to the profile's: files that change often are larger."""
        mark = 1
        for file in self.plan.files:
            file.mark = mark
            mark += file.versions
            file.size *= (1 + file.versions) ** self._profile.size_by_versions
        self._first_commit = mark
        for kinds, total in ((set(_BLOCKS), self._profile.text_bytes), ({"picture"}, self._profile.binary_bytes)):
            alive = [file for file in self.plan.files if file.alive and file.kind in kinds]
            factor = total / sum(file.size for file in alive) if alive else 0.0
            for file in self.plan.files:
                if file.kind in kinds:
                    file.size *= factor

    def write(self) -> None:
        """Every version of every file, then every commit."""
        for file in self.plan.files:
            for version, content in enumerate(self._versions(file)):
                self._data(b"blob\nmark :%d\n" % (file.mark + version), content)
        self._commits()
        self._tags()

    def _data(self, head: bytes, content: bytes) -> None:
        self.bytes += len(content)
        self._out.write(b"%sdata %d\n%s\n" % (head, len(content), content))

    def _versions(self, file: File) -> Iterator[bytes]:
        if file.kind in _BLOCKS:
            yield from self._texts(file)
            return
        chance = Chance(file.kind, self._name, file.number)
        for version in range(file.versions):
            yield self._other(file, version, chance)

    def _other(self, file: File, version: int, chance: Chance) -> bytes:
        """Content of a file that no grammar writes."""
        if file.kind == "picture":
            return b"\x89PNG\r\n\x1a\n" + chance.data(int(file.size))
        if file.kind == "people":
            lines = [f"- {name} <{address}>" for name, address in self._people[:40]]
            return "\n".join([f"# Authors of version {version}", *lines, ""]).encode()
        if file.kind == "lock":
            packages = [f'[[package]]\nname = "{chance.pick(NOUNS)}"\nversion = "{version}"\n' for _ in range(60)]
            return "\n".join(packages).encode()
        return MIT.encode() if file.kind == "licence" else b"docs"

    def _texts(self, file: File) -> Iterator[bytes]:
        twin = file.number if file.twin is None else file.twin
        text = Text(file.kind, Writer(self._name, twin), self._head(file))
        secrets = self._secrets_of(file)
        for version in range(file.versions):
            text.edit(int(file.size * (0.4 + 0.6 * (version + 1) / file.versions)))
            # Found and taken out again a few versions later, as it happens.
            yield text.content(secrets if version in range(1, 4) else ())

    def _head(self, file: File) -> list[str]:
        chance = Chance("head", self._name, file.number)
        mark = "//" if file.kind == "js" else "#"
        if file.kind == "md":
            return [f"# {chance.pick(NOUNS).title()} {chance.pick(NOUNS)}"]
        lines = [f"{mark} SPDX-License-Identifier: MIT"] if chance.happens(0.3) else []
        if chance.happens(0.1):
            lines.append(f"{mark} Written by {' <'.join(chance.pick(self._people[:40]))}>")
        if file.kind == "py":
            lines += [f'"""{chance.pick(NOUNS).title()} of the {chance.pick(NOUNS)}."""', "", "import os", "import sys"]
            lines += [f"from lib.{chance.pick(NOUNS[:40])} import {chance.pick(NOUNS)}" for _ in range(3)]
        return lines or [f"{mark} {chance.pick(NOUNS)}"]

    def _secrets_of(self, file: File) -> list[str]:
        if file.kind != "py" or file.versions < 5 or file.number % 9:
            return []
        chance = Chance("secret", self._name, file.number)
        letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
        mixed = letters + letters.lower() + "89"
        secret, line = chance.pick(
            [
                (key := "AKIA" + chance.text(letters, 16), f'AWS_ACCESS_KEY_ID = "{key}"'),
                (key := "ghp_" + chance.text(mixed, 36), f'TOKEN = "{key}"'),
                (key := chance.text(mixed, 24), f'password = "{key}"'),
                (key := chance.text(mixed, 20), f'DATABASE = "postgres://admin:{key}@db.internal:5432/main"'),
            ]
        )
        self.secrets.append(secret)
        return [line]

    def _commits(self) -> None:
        chance = Chance("messages", self._name)
        writer = Writer("messages", self._name)
        when = 1_300_000_000
        for number, happening in enumerate(self.plan.happenings):
            when += chance.between(60, 2 * 470_000_000 // self._profile.commits)
            person, address = chance.pick(self._people)
            about = f"{person} <{address}> {when} +0000"
            ref = "refs/heads/topic" if happening.branch else "refs/heads/main"
            mark = self._first_commit + number
            head = f"commit {ref}\nmark :{mark}\nauthor {about}\ncommitter {about}\n"
            message = _message(chance, writer, number, merge=len(happening.parents) > 1)
            self._out.write(f"{head}data {len(message.encode())}\n{message}\n".encode())
            links = zip(("from", "merge"), happening.parents, strict=False)
            orders = [f"{word} :{self._first_commit + parent}" for word, parent in links]
            orders += [operation.order() for operation in happening.operations]
            self._out.write("".join(f"{order}\n" for order in [*orders, ""]).encode())

    def _tags(self) -> None:
        main = [number for number, happening in enumerate(self.plan.happenings) if not happening.branch]
        for tag in range(self._profile.tags):
            number = main[(tag + 1) * (len(main) - 1) // self._profile.tags]
            self._out.write(
                f"reset refs/tags/v{tag // 10}.{tag % 10}\nfrom :{self._first_commit + number}\n\n".encode()
            )


def _message(chance: Chance, writer: Writer, number: int, *, merge: bool) -> str:
    if merge:
        return f"Merge pull request #{number} from {chance.pick(FAMILY).lower()}/{chance.pick(NOUNS)}\n"
    kind = chance.random()
    if kind < 0.08:
        return chance.pick(
            ("update\n", "typo\n", "fix tests\n", f"v{number // 500}.{number % 500}\n", "Update README.md\n")
        )
    verb, noun = chance.pick(VERBS).capitalize(), chance.pick(NOUNS)
    subject = f"{verb} the {chance.pick(ADJECTIVES)} {noun} of a {chance.pick(NOUNS)}"
    if kind < 0.6:
        return f"{subject}\n"
    text = " ".join(writer.sentence() for _ in range(chance.between(1, 4)))
    trailer = f"\nSigned-off-by: {chance.pick(GIVEN)}\n" if chance.happens(0.2) else ""
    return f"{subject} (#{number})\n\n{text}\n{trailer}"


# ---- Making ----------------------------------------------------------------------------------------------------------


def make(folder: Path, size: str, *, commits: int | None = None) -> Made:
    """Make the bare repository `folder`, which must not be there yet.

    Args:
        folder: where.
        size: a key of `SIZES`.
        commits: another number of commits, with versions to match; files and their bytes stay.

    Raises:
        subprocess.CalledProcessError: git refused.
    """
    profile = SIZES[size]
    if commits is not None:
        profile = replace(profile, commits=commits, versions=profile.versions * commits // profile.commits)
    _git(None, "init", "--quiet", "--bare", "--initial-branch=main", str(folder))
    command = ["git", f"--git-dir={folder}", "fast-import", "--quiet", "--done", "--date-format=raw", "--depth=50"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=_environment()) as process:
        assert process.stdin is not None
        stream = _Stream(profile, size, process.stdin)
        stream.write()
        process.stdin.write(b"done\n")
        process.stdin.close()
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, command)
    _git(folder, "update-ref", "-d", "refs/heads/topic")
    # Puts the objects in the order of a clone, newest first; the differences stay as they are.
    _git(folder, "repack", "-a", "-d", "--quiet")
    return Made(
        git_dir=folder,
        head=_git(folder, "rev-parse", "refs/heads/main"),
        commits=profile.commits,
        files=sum(file.alive for file in stream.plan.files),
        versions=sum(file.versions for file in stream.plan.files),
        version_bytes=stream.bytes,
        secrets=tuple(stream.secrets),
        addresses=tuple(stream.addresses),
    )


def append_commits(git_dir: Path, count: int, key: str = "new") -> str:
    """Put commits onto the newest one, each of which adds a function to a file; returns the newest."""
    names = _git(git_dir, "ls-tree", "-r", "--name-only", "refs/heads/main").split("\n")
    names = [name for name in names if name.endswith(".py")]
    orders = []
    for number in range(count):
        writer = Writer(key, number)
        path = writer.chance.pick(names)
        names.remove(path)
        text = (
            _git(git_dir, "cat-file", "blob", f"refs/heads/main:{path}")
            + "\n\n\n"
            + "\n".join(writer.function())
            + "\n"
        )
        about = f"A. Person <a.person@post-office-mail.net> {1_800_000_000 + number} +0000"
        message = f"Add a function to {path}\n"
        orders.append(f"commit refs/heads/main\ncommitter {about}\ndata {len(message)}\n{message}")
        orders.append("from refs/heads/main^0\n" if number == 0 else "")
        orders.append(f"M 100644 inline {path}\ndata {len(text.encode())}\n{text}\n\n")
    _git(git_dir, "fast-import", "--quiet", "--date-format=raw", stdin="".join(orders).encode())
    return _git(git_dir, "rev-parse", "refs/heads/main")


def _git(git_dir: Path | None, *command: str, stdin: bytes = b"") -> str:
    where = [f"--git-dir={git_dir}"] if git_dir else []
    done = subprocess.run(["git", *where, *command], input=stdin, capture_output=True, check=True, env=_environment())
    return done.stdout.decode().strip()


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}


def measured(git_dir: Path) -> dict[str, Any]:
    """What git says of a repository: to compare with the profile."""
    listing = _git(git_dir, "ls-tree", "-r", "--long", "refs/heads/main").split("\n")
    sizes = [int(line.split(None, 4)[3]) for line in listing]
    kinds = _git(git_dir, "cat-file", "--batch-all-objects", "--batch-check=%(objecttype) %(objectsize)").split("\n")
    blobs = [int(line.partition(" ")[2]) for line in kinds if line.startswith("blob")]
    return {
        "commits": int(_git(git_dir, "rev-list", "--count", "refs/heads/main")),
        "merges": int(_git(git_dir, "rev-list", "--count", "--merges", "refs/heads/main")),
        "files": len(sizes),
        "head_bytes": sum(sizes),
        "blobs": len(blobs),
        "blob_bytes": sum(blobs),
        "git_bytes": sum(file.stat().st_size for file in git_dir.rglob("*") if file.is_file()),
    }


def main() -> int:
    """Make one and say what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--commits", type=int, help="Another number of commits than the size has.")
    options = parser.parse_args()
    start = time.perf_counter()
    made = make(options.folder, options.size, commits=options.commits)
    seconds = round(time.perf_counter() - start, 1)
    told = asdict(made) | {"git_dir": str(made.git_dir), "secrets": len(made.secrets), "addresses": len(made.addresses)}
    print(json.dumps({**told, "seconds": seconds, "measured": measured(made.git_dir)}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
