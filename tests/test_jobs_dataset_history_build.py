"""A history becomes training data without leaks or secrets, the same bytes however it is stored or built."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jobs.context import JobContext, OutputExists
from jobs.dataset import build as build_module
from jobs.dataset import sides
from jobs.dataset.build import build_dataset
from jobs.repository import resolve
from jobs.shards import LABEL, DatasetError, open_dataset, verify
from jobs.spec import Config, Source

WHO = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
QUIET = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "omicron",
    "pi",
    "rho",
    "sigma",
    "tau",
    "upsilon",
]
#: Differ from build to build, or tell of times.
LOOSE = {"timing.json", "report.html"}


def git(folder, *command, stdin=None, when=0):
    times = {f"GIT_{who}_DATE": f"{1_700_000_000 + 3600 * when} +0000" for who in ("AUTHOR", "COMMITTER")}
    done = subprocess.run(
        ["git", "-C", str(folder), *command],
        input=stdin,
        capture_output=True,
        check=True,
        env=os.environ | QUIET | WHO | times,
    )
    return done.stdout.decode().strip()


def words(seed, count):
    rng = np.random.default_rng(seed)
    return [str(WORDS[index]) for index in rng.integers(0, len(WORDS), count)]


def function(seed):
    name, first, second, third = words(seed, 4)
    head = f"def {name}_{seed}({first}, {second}):\n"
    return f"{head}    {third} = {first} * {seed} + {second}\n    return {third} - {seed % 97}\n\n"


def history(folder, commits=40, files=12):
    """A repository in which every commit adds a function to one of its files."""
    git(folder, "init", "--quiet", "--initial-branch=main")
    for number in range(commits):
        path = folder / f"module_{number % files:02}.py"
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(function(number))
        git(folder, "add", ".")
        git(
            folder,
            "commit",
            "--quiet",
            "-m",
            f"Add the {words(number, 2)[1]} of area {number} to {path.stem}",
            when=number,
        )
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return history(tmp_path_factory.mktemp("repository"))


def build(repository, output, tokenizer, *, cache=None, ref=None, **section):
    resolved = resolve(str(repository), ref)
    config = Config.model_validate({"dataset": {"sequence_length": 256, "scanner": "built-in", **section}})
    source = Source(repository="repository", commit=resolved.commit, since=resolved.since)
    context = JobContext(output=output, emit=lambda event: None)
    return build_dataset(resolved.git_dir, source, config, tokenizer, context, cache_folder=cache)


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in LOOSE)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def stats_of(folder):
    return json.loads((folder / "stats.json").read_text())


def samples_of(folder):
    from pyarrow import parquet

    return parquet.read_table(folder / "samples.parquet").to_pylist()


def text_of(rows, tokenizer, *, labelled=False):
    ids = np.concatenate([row.ids[(row.flags & LABEL) > 0] if labelled else row.ids for row in rows])
    return tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False)


def test_commits_and_files_are_learned_and_the_newest_commits_only_measured(repository, tiny_tokenizer, tmp_path):
    result = build(repository, tmp_path / "out", tiny_tokenizer, future=0.1)
    verify(tmp_path / "out")
    stats = stats_of(tmp_path / "out")
    assert result["commits"] > 0
    assert stats["commits"] == stats["commits"] | {"total": 40, "merges": 0, "future": 4}
    assert {"context", "fill"} <= set(stats["splits"]["train"]["kinds"])
    assert {"edit", "message"} & set(stats["splits"]["train"]["kinds"])
    dataset = open_dataset(tmp_path / "out")
    trained = text_of(dataset.train, tiny_tokenizer)
    measured = text_of(dataset.future, tiny_tokenizer, labelled=True)
    assert result["trained_until"] == git(repository, "rev-parse", "HEAD~4")
    for number in range(36, 40):
        assert f"_{number}(" not in trained
        assert f"_{number}(" in measured
    assert "_35(" not in measured


def test_code_that_the_newest_commits_moved_is_not_measured(tiny_tokenizer, tmp_path):
    (tmp_path / "repository").mkdir()
    folder = history(tmp_path / "repository")
    moved = "".join(function(number) for number in range(0, 36, 12))
    (folder / "elsewhere.py").write_text(function(500) + moved + function(501))
    (folder / "copied.py").write_text((folder / "module_04.py").read_text())
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Move the functions of one module to another place", when=100)
    build(folder, tmp_path / "out", tiny_tokenizer, future=0.03, held_out=0.01, commit_share=0.0)
    measured = text_of(open_dataset(tmp_path / "out").future, tiny_tokenizer, labelled=True)
    learned = {path for line in samples_of(tmp_path / "out") if line["split"] == "train" for path in line["paths"]}
    assert {"module_00.py", "module_04.py"} <= learned
    assert "_500(" in measured
    assert "_501(" in measured
    assert not any(f"_{number}(" in measured for number in range(39))
    overlap = stats_of(tmp_path / "out")["overlap"]["future"]
    assert overlap["known_files"] == 1
    assert (overlap["lines"], overlap["known_lines"]) == (27, 18)
    assert overlap["share"] < 0.1


def test_the_shares_of_the_kinds_are_those_asked_for(repository, tiny_tokenizer, tmp_path):
    build(repository, tmp_path / "out", tiny_tokenizer, commit_share=0.4, doc_share=0.0)
    kinds = stats_of(tmp_path / "out")["splits"]["train"]["kinds"]
    total = sum(kind["tokens"] for kind in kinds.values())
    commits = sum(kinds[kind]["tokens"] for kind in ("edit", "message") if kind in kinds)
    assert commits / total == pytest.approx(0.4, abs=0.08)
    build(repository, tmp_path / "none", tiny_tokenizer, commit_share=0.0)
    assert not {"edit", "message"} & set(stats_of(tmp_path / "none")["splits"]["train"]["kinds"])


def test_files_without_room_have_their_reason_and_tokens_are_those_of_each_file(tiny_tokenizer, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    history(folder, commits=24, files=12)
    for number in range(6):
        (folder / f"page_{number}.md").write_text(" ".join(words(900 + number, 300)) + "\nme@example.org\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Write down what the modules are for", when=100)
    result = build(folder, tmp_path / "out", tiny_tokenizer, future=0.0, doc_share=0.05, scanner="built-in")
    stats, lines = stats_of(tmp_path / "out"), samples_of(tmp_path / "out")
    beyond = stats["dropped"]["reasons"]["beyond the share of documentation"]
    used = {path for line in lines if not line["commit"] for path in line["paths"]}
    assert 0 < beyond < 6
    assert len(used) == stats["kept"]["files"] == result["files"] == stats["in"]["files"] - beyond
    assert sum(stats["splits"][split]["files"] for split in stats["splits"]) == len(used)
    assert all(sum(line["sizes"]) == line["tokens"] for line in lines)
    assert sum(language["tokens"] for language in stats["languages"].values()) == sum(line["tokens"] for line in lines)
    pages = [line for line in lines if line["paths"][0].endswith(".md") and not line["commit"]]
    whole = {line["paths"][0] for line in pages if line["stop"] > 0}
    assert sum(line["redactions"] for line in pages) <= len(whole)


def test_no_sample_is_repeated(repository, tiny_tokenizer, tmp_path):
    build(repository, tmp_path / "out", tiny_tokenizer, commit_share=0.8, doc_share=0.0)
    names = [
        (*line["paths"], line["commit"], line["kind"], line["start"], line["place"], line["row"])
        for line in samples_of(tmp_path / "out")
    ]
    commits = [line["commit"] for line in samples_of(tmp_path / "out") if line["commit"]]
    assert len(names) == len(set(names))
    assert len(commits) == len(set(commits))


def test_a_renamed_file_is_held_out_under_all_its_names_with_its_commits(tiny_tokenizer, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    history(folder, commits=24, files=12)
    for number in range(12):
        git(folder, "mv", f"module_{number:02}.py", f"renamed_{number:02}.py")
    git(folder, "commit", "--quiet", "-m", "Rename every module to something else", when=100)
    build(folder, tmp_path / "out", tiny_tokenizer, held_out=0.3, future=0.0, commit_share=0.5)
    lines = samples_of(tmp_path / "out")
    held_out, trained = (
        {path.rpartition("_")[2] for line in lines if line["split"] == split for path in line["paths"]}
        for split in ("held_out", "train")
    )
    assert held_out
    assert not held_out & trained


def test_a_near_copy_of_a_held_out_file_is_never_trained_on(tiny_tokenizer, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    for number in range(10):
        text = "".join(function(1000 * number + part) for part in range(12))
        (folder / f"one_{number}.py").write_text(text)
        (folder / f"copy_{number}.py").write_text(text.replace("return", "return 1 +", 1) + "# the end\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Put everything in place at once")
    build(folder, tmp_path / "out", tiny_tokenizer, held_out=0.3)
    sides_ = {path: line["split"] for line in samples_of(tmp_path / "out") for path in line["paths"]}
    assert {"train", "held_out"} == set(sides_.values())
    for number in range(10):
        assert sides_[f"one_{number}.py"] == sides_[f"copy_{number}.py"]
    assert stats_of(tmp_path / "out")["duplicates"]["near"] == 20


def test_a_planted_leak_fails_the_build_and_is_named(tiny_tokenizer, tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    for number in range(6):
        (folder / f"module_{number}.py").write_text("".join(function(1000 * number + part) for part in range(10)))
    (folder / "leak.py").write_text((folder / "module_3.py").read_text() + function(77))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Put everything in place at once")
    # The two would be kept together: as if the search for copies had failed, and only the last check stood.
    monkeypatch.setattr(sides, "clusters", lambda sets: [])
    monkeypatch.setattr(sides, "contained", lambda sets, limit: [])
    monkeypatch.setattr(sides, "held_out_names", lambda units, share, seed: frozenset({"module_3.py"}))
    with pytest.raises(DatasetError, match=r"module_3\.py.*leak\.py|leak\.py.*module_3\.py"):
        build(folder, tmp_path / "out", tiny_tokenizer)
    assert not (tmp_path / "out").exists()


SECRETS = {
    "AKIA" + "Q3EGRIRIO2LXPAJZ": "an AWS key",
    "ghp_" + "x7Kq2mVb9TzL4nRw8YcP1sHd6FgJ3aQe5UoZ": "a GitHub token",
    "hunter2" + "Xk9!vQz4": "a password",
    "jane.doe" + "@corp-mail.io": "an address",
}


def test_secrets_anywhere_in_a_history_are_in_no_byte_of_the_output(tiny_tokenizer, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    history(folder, commits=20, files=5)
    aws, github, password, address = SECRETS
    config = f'AWS = "{aws}"\nTOKEN = "{github}"\npassword = "{password}"\n# ask {address}\n'
    (folder / "settings.py").write_text(config + function(500))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", f"Add settings\n\nAsk {address} for {github}", when=200)
    (folder / "settings.py").write_text(function(500) + function(501))
    git(folder, "commit", "--quiet", "-am", "Take the settings out of the code again", when=201)
    (folder / "module_01.py").write_text(config + function(502))
    git(folder, "commit", "--quiet", "-am", "Put settings where they do not belong", when=202)
    hidden = folder / "keys" / f"{github}.py"
    hidden.parent.mkdir()
    hidden.write_text(function(503))
    (folder / f"for_{address}.py").write_text(function(504))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Name files after what nobody should know", when=203)
    build(folder, tmp_path / "out", tiny_tokenizer, future=0.0, commit_share=0.7, cache=tmp_path / "cache")
    stats = stats_of(tmp_path / "out")
    assert stats["redactions"]["total"] > 0
    written = [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents]
    dataset = open_dataset(tmp_path / "out")
    spelled = "".join(text_of(rows, tiny_tokenizer) for rows in (dataset.train, dataset.held_out))
    for secret, what in SECRETS.items():
        assert secret not in spelled, what
        for path in written:
            assert secret.encode() not in path.read_bytes(), (what, path)


def test_the_middle_of_a_private_key_is_not_shown_by_a_commit_that_changes_only_that(tiny_tokenizer, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    history(folder, commits=20, files=5)
    rng = np.random.default_rng(7)
    body = ["".join(rng.choice(list("ABCDEFGHabcdefgh01234567+/"), 40)) for _ in range(100)]
    code = "".join(map(function, range(700, 900)))
    key = ["-----BEGIN RSA PRIVATE KEY-----", *body, "-----END RSA PRIVATE KEY-----"]
    for number, line in enumerate([body[50], body[0], body[50][::-1]]):
        key[51] = line
        lines = "".join(f'    "{line}\\n"\n' for line in key)
        (folder / "sample.py").write_text(f"{code}KEY = (\n{lines})\n{code}")
        git(folder, "add", ".")
        git(
            folder, "commit", "--quiet", "-m", f"Change the key that the samples use, round {number}", when=300 + number
        )
    build(folder, tmp_path / "out", tiny_tokenizer, future=0.0, commit_share=0.8, held_out=0.1, sequence_length=4096)
    dataset = open_dataset(tmp_path / "out")
    spelled = "".join(text_of(rows, tiny_tokenizer) for rows in (dataset.train, dataset.held_out))
    assert not any(line in spelled for line in [*body, body[50][::-1]])


def test_a_secret_that_is_named_far_away_is_not_shown_where_a_commit_uses_it(tiny_tokenizer, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    history(folder, commits=20, files=5)
    token, password = "3f9a1c77be40d25186a90e8f3c6b7d21a4f05e93", "Kd83hs" + "7Tq1!x"
    issued = "9be1d04c5a7f42e8b36d08c17fa2e965"  # only the scanner knows it, by its name
    named = f'API_TOKEN = "{token}"\npassword = "{password}"\nfacebook = "{issued}"\n'
    named += "".join(map(function, range(700, 740)))
    for number, word in enumerate(["alpha", "beta", "gamma"]):
        (folder / "far.py").write_text(f'{named}fetch("/{word}", "{token}", "{password}", "{issued}")\n')
        git(folder, "add", ".")
        message = f"Fetch the {word} instead, as {token} told us to"
        git(folder, "commit", "--quiet", "-m", message, when=300 + number)
    shares = {"future": 0.0, "commit_share": 0.8, "held_out": 0.1}
    build(folder, tmp_path / "out", tiny_tokenizer, **shares, sequence_length=4096, scanner="auto")
    dataset = open_dataset(tmp_path / "out")
    spelled = "".join(text_of(rows, tiny_tokenizer) for rows in (dataset.train, dataset.held_out))
    assert token not in spelled
    assert password not in spelled
    assert issued not in spelled


def test_commits_do_not_give_away_a_held_out_file_piece_by_piece(tiny_tokenizer, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    history(folder, commits=12, files=6)
    for number in range(40):
        with (folder / f"grown_{number % 4}.py").open("a") as file:
            file.write(function(1000 + number))
        git(folder, "add", ".")
        message = f"Add what is needed for part {number} of it"
        git(folder, "commit", "--quiet", "-m", message, when=100 + number)
    for number in range(4):
        shutil.copy(folder / f"grown_{number}.py", folder / f"another_{number}.py")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Put the same under another name", when=200)
    git(folder, "rm", "--quiet", *(f"grown_{number}.py" for number in range(4)))
    git(folder, "commit", "--quiet", "-m", "Take the old names away at last", when=201)
    build(folder, tmp_path / "out", tiny_tokenizer, future=0.0, commit_share=0.8, doc_share=0.0, held_out=0.4)
    lines = samples_of(tmp_path / "out")
    held_out = {path for line in lines if line["split"] == "held_out" for path in line["paths"]}
    copies = [path for path in held_out if path.startswith("another")]
    assert copies
    learned = text_of(open_dataset(tmp_path / "out").train, tiny_tokenizer)
    for path in copies:
        functions = (folder / path).read_text().split("\n\n")[:-1]
        assert sum(one.splitlines()[0] in learned for one in functions) <= len(functions) * 0.6, path


def test_a_commit_that_touches_a_large_file_is_looked_at_once(tiny_tokenizer, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    history(folder, commits=12, files=6)
    for number in range(3):
        (folder / "large.py").write_text("".join(function(part) for part in range(3000)) + function(5000 + number))
        (folder / "module_01.py").write_text(function(6000 + number))
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", f"Go on with the large one, round {number}", when=300 + number)
    for name in ("one", "two"):
        build(folder, tmp_path / name, tiny_tokenizer, commit_share=0.7, cache=tmp_path / "cache")
    assert json.loads((tmp_path / "two" / "timing.json").read_text())["cached"]["misses"] == 0


def test_a_rebuild_after_new_commits_is_what_a_build_from_nothing_gives(tiny_tokenizer, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    history(folder, commits=30)
    build(folder, tmp_path / "out", tiny_tokenizer, cache=tmp_path / "cache")
    for number in (31, 32):
        (folder / f"new_{number}.py").write_text(function(number) * 3)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", f"Add one more module for area {number}", when=number)
    build(folder, tmp_path / "out", tiny_tokenizer, cache=tmp_path / "cache")
    cached = json.loads((tmp_path / "out" / "timing.json").read_text())["cached"]
    assert cached["hits"] > cached["misses"]
    build(folder, tmp_path / "clean", tiny_tokenizer)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_the_same_bytes_whatever_the_order_of_objects_and_the_seed_of_hashes(repository, tiny_tokenizer, tmp_path):
    build(repository, tmp_path / "one", tiny_tokenizer)
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), "two.git")
    git(tmp_path / "two.git", "-c", "pack.window=0", "repack", "-adfq")
    packs = list((tmp_path / "two.git" / "objects" / "pack").glob("*.pack"))
    assert packs
    # Every object loose, then packed in another order.
    for pack in packs:
        moved = pack.rename(tmp_path / pack.name)
        pack.with_suffix(".idx").unlink()
        git(tmp_path / "two.git", "unpack-objects", "-q", stdin=moved.read_bytes())
    build(tmp_path / "two.git", tmp_path / "two", tiny_tokenizer)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_range_learns_only_its_commits(repository, tiny_tokenizer, tmp_path):
    build(
        repository, tmp_path / "out", tiny_tokenizer, ref="HEAD~10..HEAD", future=0.0, commit_share=0.8, doc_share=0.0
    )
    stats = stats_of(tmp_path / "out")
    recent = git(repository, "rev-list", "HEAD~10..HEAD").split()
    assert stats["commits"]["total"] == 10
    assert {line["commit"] for line in samples_of(tmp_path / "out") if line["commit"]} <= set(recent)


def test_a_budget_of_tokens_bounds_the_training_split(repository, tiny_tokenizer, tmp_path):
    whole = build(repository, tmp_path / "whole", tiny_tokenizer)["train_tokens"]
    small = build(repository, tmp_path / "small", tiny_tokenizer, tokens=1000)["train_tokens"]
    assert small < whole
    assert small < 1000 * 1.5


def test_a_dataset_is_replaced_by_a_new_one_and_survives_a_failed_one(
    repository, tiny_tokenizer, tmp_path, monkeypatch
):
    build(repository, tmp_path / "out", tiny_tokenizer)
    before = contents(tmp_path / "out")

    def fail(*_arguments, **_keywords):
        raise DatasetError("no report today")

    with monkeypatch.context() as patched:
        patched.setattr(build_module, "write_report", fail)
        with pytest.raises(DatasetError, match="no report today"):
            build(repository, tmp_path / "out", tiny_tokenizer, seed=18)
    assert contents(tmp_path / "out") == before
    build(repository, tmp_path / "out", tiny_tokenizer, seed=18)
    assert contents(tmp_path / "out") != before
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["out"]


def test_a_dataset_that_a_killed_run_had_put_aside_comes_back(repository, tiny_tokenizer, tmp_path):
    build(repository, tmp_path / "out", tiny_tokenizer)
    before = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.replaced")
    with pytest.raises(DatasetError):
        build(repository, tmp_path / "out", tiny_tokenizer, include=["no such file"])
    assert contents(tmp_path / "out") == before


def test_what_is_excluded_is_not_learned_under_another_name(tiny_tokenizer, tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    history(folder, commits=12, files=6)
    (folder / "private").mkdir()
    (folder / "private" / "plan.py").write_text(
        "zebraword = 1\n" + "".join(function(number) for number in range(600, 606))
    )
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "Keep a plan to ourselves for now", when=50)
    git(folder, "mv", "private/plan.py", "public.py")
    (folder / "public.py").write_text("".join(function(number) for number in range(600, 606)))
    git(folder, "commit", "--quiet", "-am", "Publish what may be known of the plan", when=51)
    build(folder, tmp_path / "out", tiny_tokenizer, exclude=["private"], future=0.0, commit_share=0.8, doc_share=0.0)
    dataset = open_dataset(tmp_path / "out")
    assert "zebraword" not in "".join(text_of(rows, tiny_tokenizer) for rows in (dataset.train, dataset.held_out))


def test_an_object_that_was_missing_once_is_learned_when_it_is_there(repository, tiny_tokenizer, tmp_path):
    git(tmp_path, "clone", "--quiet", "--bare", "--no-local", str(repository), "broken.git")
    git(tmp_path / "broken.git", "config", "core.looseCompression", "0")
    pack = next((tmp_path / "broken.git" / "objects" / "pack").glob("*.pack"))
    moved = pack.rename(tmp_path / pack.name)
    git(tmp_path / "broken.git", "unpack-objects", "-q", stdin=moved.read_bytes())
    blob = git(repository, "rev-parse", "HEAD~10:module_03.py")
    loose = tmp_path / "broken.git" / "objects" / blob[:2] / blob[2:]
    loose.rename(tmp_path / "aside")
    settings = {"cache": tmp_path / "cache", "commit_share": 0.8, "doc_share": 0.0}
    build(tmp_path / "broken.git", tmp_path / "one", tiny_tokenizer, **settings)
    (tmp_path / "aside").rename(loose)
    build(tmp_path / "broken.git", tmp_path / "two", tiny_tokenizer, **settings)
    build(repository, tmp_path / "clean", tiny_tokenizer, commit_share=0.8, doc_share=0.0)
    assert contents(tmp_path / "two") == contents(tmp_path / "clean")


def test_a_folder_with_another_programs_manifest_is_left_alone(repository, tiny_tokenizer, tmp_path):
    for manifest in ('{"manifest_version": 3}', "not JSON"):
        (tmp_path / "extension").mkdir(exist_ok=True)
        (tmp_path / "extension" / "manifest.json").write_text(manifest)
        (tmp_path / "extension" / "thesis.txt").write_text("years of work")
        with pytest.raises(OutputExists):
            build(repository, tmp_path / "extension", tiny_tokenizer)
    build(repository, tmp_path / "out", tiny_tokenizer)
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExists):
        build(repository, tmp_path / "out", tiny_tokenizer, seed=18)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
