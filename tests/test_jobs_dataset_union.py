"""Several repositories become one dataset: none is learned twice, and none gives away what another holds out."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from jobs.context import JobContext
from jobs.dataset.build import build_dataset
from jobs.dataset.portion import _nearest
from jobs.repository import RepositoryError
from jobs.shards import LABEL, DatasetError, open_dataset, verify
from jobs.sources import full_name, resolve_all
from jobs.spec import Config

WHO = {f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
QUIET = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
LOOSE = {"timing.json", "report.html"}


def git(folder, *command, when=0):
    times = {f"GIT_{who}_DATE": f"{1_700_000_000 + 3600 * when} +0000" for who in ("AUTHOR", "COMMITTER")}
    environment = os.environ | QUIET | WHO | times
    done = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, check=True, env=environment)
    return done.stdout.decode().strip()


def function(word, number):
    names = ("width", "height", "depth", "price", "weight", "colour", "speed", "angle")
    rng = np.random.default_rng([number, *word.encode()])
    first, second, third = (str(names[index]) for index in rng.integers(0, len(names), 3))
    return (
        f"def {word}_{number}({first}):\n    {second} = {first} * {number} + {word}\n    return {third} - {number}\n\n"
    )


def grown(folder, word, numbers, files=12, suffix="py"):
    """A repository in which every commit adds a function to one of its files."""
    folder.mkdir(exist_ok=True)
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet", "--initial-branch=main")
    for number in numbers:
        with (folder / f"{word}_{number % files:02}.{suffix}").open("a") as file:
            file.write(function(word, number))
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", f"Add the {word} of area {number} to the module", when=number)
    return folder


def build(output, tokenizer, *repositories, **section):
    """Build of repositories, each a path or (path, weight)."""
    pairs = [one if isinstance(one, tuple) else (one, None) for one in repositories]
    further = [{"repository": str(path), "weight": weight} for path, weight in pairs[1:]]
    settings = {"sequence_length": 256, "scanner": "built-in", "also": further, **section}
    config = Config.model_validate({"dataset": settings})
    sources = resolve_all(str(pairs[0][0]), None, config.dataset.also)
    context = JobContext(output=output, emit=lambda event: None)
    main, *also = [one.git_dir for one in sources.all]
    source = sources.pinned(full_name)
    result = build_dataset(main, source, config.without_repositories(), tokenizer, context, also=also)
    verify(output)
    return result


def stats_of(folder):
    return json.loads((folder / "stats.json").read_text())


def samples_of(folder):
    from pyarrow import parquet

    return parquet.read_table(folder / "samples.parquet").to_pylist()


def text_of(rows, tokenizer, *, labelled=False):
    ids = np.concatenate([row.ids[(row.flags & LABEL) > 0] if labelled else row.ids for row in rows])
    return tokenizer.backend_tokenizer.decode(ids.tolist(), skip_special_tokens=False)


@pytest.fixture(scope="module")
def alpha(tmp_path_factory):
    return grown(tmp_path_factory.mktemp("repositories") / "alpha", "alpha", range(30))


@pytest.fixture(scope="module")
def beta(tmp_path_factory):
    return grown(tmp_path_factory.mktemp("repositories") / "beta", "beta", range(60))


def test_two_repositories_are_learned_each_under_its_name(alpha, beta, tiny_tokenizer, tmp_path):
    build(tmp_path / "out", tiny_tokenizer, alpha, beta, future=0.1)
    text = text_of(open_dataset(tmp_path / "out").train, tiny_tokenizer)
    assert "<repo_name>alpha<file_sep>alpha_" in text
    assert "<repo_name>beta<file_sep>beta_" in text
    assert "<file_sep>beta/beta_" not in text
    folders = {path.split("/")[0] for sample in samples_of(tmp_path / "out") for path in sample["paths"]}
    assert folders == {"alpha", "beta"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [source["name"] for source in manifest["sources"]] == ["alpha", "beta"]
    assert stats_of(tmp_path / "out")["commits"]["future"] == 3 + 6
    assert "Training tokens by repository" in (tmp_path / "out" / "report.html").read_text()


def test_a_weight_that_leaves_nothing_of_a_repository_is_refused(alpha, beta, tiny_tokenizer, tmp_path):
    with pytest.raises(DatasetError, match="leave nothing"):
        build(tmp_path / "out", tiny_tokenizer, alpha, (beta, 1e-300), future=0)
    assert not (tmp_path / "out").exists()


def test_training_tokens_stand_in_the_ratio_of_the_weights(alpha, beta, tiny_tokenizer, tmp_path):
    def tokens(weight, name):
        build(tmp_path / name, tiny_tokenizer, alpha, (beta, weight), future=0)
        return [one["train_tokens"] for one in stats_of(tmp_path / name)["repositories"]]

    whole = tokens(None, "whole")
    half = tokens(0.5, "half")
    triple = tokens(9, "triple")
    assert half[0] == whole[0]
    assert triple[1] == whole[1]
    # As near as half of a whole sample, which has 256 tokens here.
    assert abs(half[1] - half[0] / 2) <= 128
    assert abs(triple[0] - triple[1] / 9) <= 128


def test_a_limit_of_tokens_holds_for_all_of_them(alpha, beta, tiny_tokenizer, tmp_path):
    result = build(tmp_path / "out", tiny_tokenizer, alpha, (beta, 1), tokens=2000)
    assert 1800 < result["train_tokens"] < 2200


@pytest.mark.parametrize(
    ("sizes", "wanted", "chosen"), [([5, 5, 5, 5], 10, [0, 1]), ([9, 1, 1], 3.3, [1, 2]), ([4], 1.6, []), ([4], 9, [0])]
)
def test_what_is_left_comes_as_near_to_what_is_wanted_as_it_can(sizes, wanted, chosen):
    assert _nearest(sizes, wanted)[0] == chosen


def test_two_builds_are_the_same_bytes(alpha, beta, tiny_tokenizer, tmp_path):
    def contents(name):
        build(tmp_path / name, tiny_tokenizer, alpha, (beta, 0.7))
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file() and path.name not in LOOSE)
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    assert contents("one") == contents("two")


def test_a_second_repository_moves_no_file_of_the_first(alpha, beta, tiny_tokenizer, tmp_path):
    def held_out(name, *repositories):
        build(tmp_path / name, tiny_tokenizer, *repositories, future=0, held_out=0.2)
        paths = {
            path for sample in samples_of(tmp_path / name) if sample["split"] == "held_out" for path in sample["paths"]
        }
        return {path.split("/")[-1] for path in paths if "beta" not in path}

    assert held_out("one", alpha) == held_out("two", alpha, beta)


@pytest.fixture
def fork(alpha, tmp_path):
    """A clone of alpha that went on: every file has changed, and some were renamed."""
    shutil.copytree(alpha, tmp_path / "fork")
    grown(tmp_path / "fork", "alpha", range(100, 124))
    git(tmp_path / "fork", "mv", "alpha_03.py", "renamed.py")
    git(tmp_path / "fork", "commit", "--quiet", "-m", "Give the third module a better name", when=200)
    return tmp_path / "fork"


def test_a_fork_does_not_give_away_what_is_held_out(alpha, fork, tiny_tokenizer, tmp_path):
    build(tmp_path / "out", tiny_tokenizer, alpha, fork, held_out=0.3, future=0)
    samples = samples_of(tmp_path / "out")
    held = {path.split("/")[1] for sample in samples if sample["split"] == "held_out" for path in sample["paths"]}
    numbers = [number for number in [*range(30), *range(100, 124)] if f"alpha_{number % 12:02}.py" in held]
    trained = text_of(open_dataset(tmp_path / "out").train, tiny_tokenizer)
    assert numbers
    assert not [number for number in numbers if f"def alpha_{number}(" in trained]


def test_a_file_that_a_fork_wrote_anew_or_renamed_stays_on_its_side(alpha, fork, tiny_tokenizer, tmp_path):
    for number, file in enumerate(sorted(fork.glob("*.py"))):
        file.write_text("".join(function("delta", 1000 + 20 * number + line) for line in range(6)))
    git(fork, "commit", "--quiet", "--all", "-m", "Write everything anew in another style", when=300)
    build(tmp_path / "out", tiny_tokenizer, alpha, fork, held_out=0.4, future=0, fim_rate=0)
    samples = [sample for sample in samples_of(tmp_path / "out") if not sample["commit"]]
    held = {path.split("/")[1] for sample in samples if sample["split"] == "held_out" for path in sample["paths"]}
    dataset = open_dataset(tmp_path / "out")
    trained = text_of(dataset.train, tiny_tokenizer)
    if held & {"renamed.py", "alpha_03.py"}:
        held |= {"renamed.py", "alpha_03.py"}
    assert len(held) > 3
    assert not [name for name in held if f"<file_sep>{name}" in trained]


def test_a_commit_that_two_histories_share_is_learned_once(alpha, fork, tiny_tokenizer, tmp_path):
    build(tmp_path / "out", tiny_tokenizer, alpha, fork, future=0, commit_share=0.8)
    train = [sample for sample in samples_of(tmp_path / "out") if sample["split"] == "train" and sample["commit"]]
    keys = [(sample["commit"], sample["kind"], sample["mode"]) for sample in train]
    assert keys
    assert len(set(keys)) == len(keys)
    assert stats_of(tmp_path / "out")["commits"]["total"] == 30 + 25


def test_what_a_repository_holds_back_as_its_future_a_clone_does_not_give_away(alpha, tiny_tokenizer, tmp_path):
    shutil.copytree(alpha, tmp_path / "clone")
    git(tmp_path / "clone", "reset", "--quiet", "--hard", "HEAD~2")
    grown(tmp_path / "clone", "alpha", [50])
    grown(tmp_path / "clone", "gamma", [51, 52])
    git(tmp_path / "clone", "tag", "ahead")
    # Branches off before the future of alpha and has something of its own.
    git(tmp_path / "clone", "reset", "--quiet", "--hard", "HEAD~5")
    grown(tmp_path / "clone", "gamma", range(53, 58))
    git(tmp_path / "clone", "merge", "--quiet", "-m", "Merge what is ahead into this", "-X", "ours", "ahead")
    build(tmp_path / "out", tiny_tokenizer, alpha, tmp_path / "clone", future=0.1)
    dataset = open_dataset(tmp_path / "out")
    trained = text_of(dataset.train, tiny_tokenizer)
    measured = text_of(dataset.future, tiny_tokenizer, labelled=True)
    assert "def alpha_27(" in measured
    for number in (27, 28, 29):
        assert f"def alpha_{number}(" not in trained
    assert "def gamma_5" in trained


def test_a_copy_without_history_is_divided_with_the_original(alpha, tiny_tokenizer, tmp_path):
    (tmp_path / "copy").mkdir()
    for file in alpha.glob("*.py"):
        (tmp_path / "copy" / f"new_{file.name}").write_text(file.read_text() + "\nmore = 1\n")
    git(tmp_path / "copy", "init", "--quiet")
    git(tmp_path / "copy", "add", ".")
    git(tmp_path / "copy", "commit", "--quiet", "-m", "Import")
    build(tmp_path / "out", tiny_tokenizer, alpha, tmp_path / "copy", held_out=0.3, future=0)
    sides = {"train": set(), "held_out": set(), "future": set()}
    for sample in samples_of(tmp_path / "out"):
        sides[sample["split"]].update(path.split("/")[-1].removeprefix("new_") for path in sample["paths"])
    assert sides["held_out"]
    assert not {name for name in sides["held_out"] if name in sides["train"]}


def test_the_commits_of_an_exact_copy_of_what_is_held_out_are_not_learned(alpha, tiny_tokenizer, tmp_path):
    copy = grown(tmp_path / "copy", "other", range(12))
    for name in sorted(file.name for file in alpha.glob("*.py")):
        text = (alpha / name).read_text()
        head = text[: text.index("\n\n") + 2]
        for content in (head, text):
            (copy / f"copied_{name}").write_text(content)
            git(copy, "add", ".")
            git(copy, "commit", "--quiet", "-m", f"Take over more of the module {name}", when=400)
    build(tmp_path / "out", tiny_tokenizer, alpha, copy, held_out=0.4, future=0, commit_share=0.8, max_overlap=1)
    samples = samples_of(tmp_path / "out")
    held = {path.split("/")[1] for sample in samples if sample["split"] == "held_out" for path in sample["paths"]}
    learned = {
        sample["paths"][0].split("/")[1] for sample in samples if sample["split"] == "train" and sample["commit"]
    }
    assert [name for name in learned if name.startswith("copied_")]
    assert not [name for name in held if f"copied_{name}" in learned]


def test_a_repository_that_has_nothing_of_its_own_is_a_sentence(alpha, tiny_tokenizer, tmp_path):
    shutil.copytree(alpha, tmp_path / "clone")
    with pytest.raises(DatasetError, match=r"clone has no file to learn from .*duplicate"):
        build(tmp_path / "out", tiny_tokenizer, alpha, tmp_path / "clone", future=0)
    assert not (tmp_path / "out").exists()


def test_a_fork_that_builds_on_the_future_of_another_says_how_to_learn_it(alpha, fork, tiny_tokenizer, tmp_path):
    with pytest.raises(DatasetError, match=r"fork has no file to learn from .*set dataset.future to 0"):
        build(tmp_path / "out", tiny_tokenizer, alpha, fork)


def test_one_that_cannot_be_read_or_is_named_twice_is_a_sentence(alpha, tiny_tokenizer, tmp_path):
    with pytest.raises(RepositoryError, match=r"nowhere does not exist"):
        build(tmp_path / "out", tiny_tokenizer, alpha, tmp_path / "nowhere")
    git(alpha, "worktree", "add", "--quiet", "--detach", str(tmp_path / "tree"))
    for again in (alpha, alpha / ".git", tmp_path / "tree"):
        with pytest.raises(RepositoryError, match="is named twice"):
            build(tmp_path / "out", tiny_tokenizer, alpha, again)


def test_two_urls_of_one_repository_are_the_same(alpha):
    config = Config.model_validate({"dataset": {"also": [{"repository": f"file://{alpha}/.git"}]}})
    for name in (str(alpha), f"file://{alpha}", f"file://{alpha}/"):
        with pytest.raises(RepositoryError, match="is named twice"):
            resolve_all(name, None, config.dataset.also)
