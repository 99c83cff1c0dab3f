"""Commits become samples as each family reads them; the code before is context, and nothing is longer than a row."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.dataset.commits import CommitRenderer, CommitText, FileEdit
from jobs.dataset.fim import Mode, layout_of
from jobs.dataset.samples import SampleKind
from jobs.dataset.tokens import Vocabulary
from jobs.spec import DatasetSection

FILL = ["<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>"]
STARCODER2 = [*FILL, "<repo_name>", "<file_sep>", "<pr>", "<pr_status>", "<pr_base>", "<pr_file>", "<pr_base_code>"]
STARCODER2 += ["<pr_diff>", "<pr_diff_hunk>"]
STARCODER = [*FILL, "<reponame>", "<filename>", "<commit_before>", "<commit_msg>", "<commit_after>"]
PLAIN = ["<|endoftext|>"]

BEFORE = "".join(f"line {number}\n" for number in range(60))
AFTER = BEFORE.replace("line 30\n", "line thirty\nline 30.5\n")
EDIT = FileEdit("new/a.py", "old/a.py", BEFORE, AFTER)


def family(specials):
    """A tokenizer of one token a byte with these special tokens, and its vocabulary."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    return SimpleNamespace(backend=backend, vocabulary=Vocabulary(tokenizer))


@pytest.fixture(scope="module")
def families():
    return {"StarCoder2": family(STARCODER2), "StarCoder": family(STARCODER), "plain": family(PLAIN)}


def commit(number=0, files=(EDIT,), message="Count further\n\nBecause thirty is not enough.\n\nSigned-off-by: A <a@b>"):
    return CommitText(f"{number:040x}", message, tuple(files))


def render(family, commits, length=4000, seed=17):
    section = DatasetSection(sequence_length=length, seed=seed)
    return CommitRenderer(family.vocabulary, layout_of(family.vocabulary.special), "repo", section).render(commits)


def of_kind(family, kind, **changes):
    """The first sample of that kind among commits that differ in their id alone."""
    length = changes.pop("length", 4000)
    samples = render(family, [commit(number, **changes) for number in range(20)], length)
    return next(sample for sample in samples if sample.kind is kind)


def told(family, ids):
    return family.backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False)


def learned(family, sample):
    return told(family, sample.ids[sample.labels])


def not_learned(family, sample):
    return told(family, sample.ids[~sample.labels])


def test_starcoder2_reads_an_edit_as_a_pull_request(families):
    sample = of_kind(families["StarCoder2"], SampleKind.EDIT)
    text = told(families["StarCoder2"], sample.ids)
    assert text.startswith(
        "<pr>Title: Count further\nusername_0: Because thirty is not enough.<pr_status>opened<repo_name>repo"
        "<pr_base><pr_file>old/a.py<pr_base_code>line "
    )
    base, diff = text.split("<pr_diff>")
    assert "line 30\n" in base
    assert "thirty\n" not in base.partition("<pr_base_code>")[2]
    assert diff.startswith("<pr_file>new/a.py<pr_diff_hunk>@@ -")
    assert "\n-line 30\n+line thirty\n+line 30.5\n line 31\n" in diff
    assert diff.endswith("<|endoftext|>")
    assert sample.mode is Mode.PLAIN


def test_the_code_before_is_context_and_the_message_and_the_diff_are_learned(families):
    family = families["StarCoder2"]
    sample = of_kind(family, SampleKind.EDIT)
    context = not_learned(family, sample)
    assert context.startswith("<pr><pr_status>opened<repo_name>repo<pr_base><pr_file>old/a.py<pr_base_code>line ")
    assert learned(family, sample).startswith("Title: Count further\nusername_0")
    assert "<pr_diff>" in learned(family, sample)
    assert "+line thirty" not in context


def test_starcoder_reads_an_edit_as_code_before_message_code_after(families):
    family = families["StarCoder"]
    sample = of_kind(family, SampleKind.EDIT)
    before, rest = told(family, sample.ids).removeprefix("<commit_before>").split("<commit_msg>")
    message, after = rest.removesuffix("<|endoftext|>").split("<commit_after>")
    assert message == "Count further\n\nBecause thirty is not enough."
    assert before in BEFORE
    assert after in AFTER
    assert after == before.replace("line 30\n", "line thirty\nline 30.5\n")
    assert not_learned(family, sample) == f"<commit_before>{before}"


def test_another_model_reads_an_edit_under_clear_headings(families):
    family = families["plain"]
    sample = of_kind(family, SampleKind.EDIT)
    text = told(family, sample.ids)
    assert text.startswith(
        "Commit message:\nCount further\n\nBecause thirty is not enough.\n\nBefore, old/a.py:\nline "
    )
    assert "\nChanges:\n--- a/old/a.py\n+++ b/new/a.py\n@@ -" in text
    assert not_learned(family, sample).startswith("\nBefore, old/a.py:\nline ")
    assert "+line thirty" in learned(family, sample)


@pytest.mark.parametrize("name", ["StarCoder2", "StarCoder", "plain"])
def test_a_message_is_told_from_its_diff_and_only_new_lines_are_learned_beside_it(families, name):
    family = families[name]
    sample = of_kind(family, SampleKind.MESSAGE)
    text = told(family, sample.ids)
    assert text.startswith("Changes:\n--- a/old/a.py\n+++ b/new/a.py\n@@ -")
    assert text.endswith("\n\nCommit message:\nCount further\n\nBecause thirty is not enough.<|endoftext|>")
    assert learned(family, sample) == (
        "+line thirty\n+line 30.5\nCount further\n\nBecause thirty is not enough.<|endoftext|>"
    )


def test_about_half_of_the_commits_are_edits(families):
    samples = render(families["plain"], [commit(number) for number in range(300)])
    assert len(samples) == 300
    assert sum(sample.kind is SampleKind.EDIT for sample in samples) == pytest.approx(150, abs=40)


def test_a_new_file_has_no_code_before(families):
    new = FileEdit("a.py", "a.py", "", "one\ntwo\n")
    text = told(families["StarCoder2"], of_kind(families["StarCoder2"], SampleKind.EDIT, files=[new]).ids)
    assert "<pr_base><pr_diff><pr_file>a.py<pr_diff_hunk>@@ -0,0 +1,2 @@\n+one\n+two\n<|endoftext|>" in text
    text = told(families["plain"], of_kind(families["plain"], SampleKind.MESSAGE, files=[new]).ids)
    assert "--- /dev/null\n+++ b/a.py\n" in text


@pytest.mark.parametrize(
    "change",
    [
        {"message": "wip"},
        {"files": []},
        {"files": [FileEdit("b.py", "a.py", "same\n", "same\n")]},
        {"files": [FileEdit("a.py", "a.py", "gone\n", "")]},
        {"files": [FileEdit("a.py", "a.py", "", "x" * 100_000)]},
    ],
    ids=["says nothing", "no file", "renamed only", "removed only", "longer than a row"],
)
def test_what_teaches_nothing_or_does_not_fit_gives_no_sample(families, change):
    assert render(families["plain"], [commit(**change), commit(1)])[0].document == 1


def test_too_much_context_gives_way_before_files_do(families):
    family = families["StarCoder2"]
    commits = [commit(number) for number in range(20)]
    roomy = max(render(family, commits), key=lambda sample: len(sample.ids))
    (tight,) = render(family, [commits[roomy.document]], length=300)
    assert len(tight.ids) <= 300 < len(roomy.ids)
    assert "+line thirty" in told(family, tight.ids)


def test_the_smallest_changes_stay_when_not_all_files_fit(families):
    large = FileEdit("large.py", "large.py", "", "".join(f"new line {number}\n" for number in range(100)))
    text = told(families["plain"], of_kind(families["plain"], SampleKind.MESSAGE, files=[large, EDIT], length=300).ids)
    assert "new/a.py" in text
    assert "large.py" not in text


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.tuples(st.text(max_size=200), st.text(min_size=1, max_size=200)), min_size=1, max_size=4),
    length=st.integers(32, 400),
    name=st.sampled_from(["StarCoder2", "StarCoder", "plain"]),
    number=st.integers(0, 9),
)
def test_no_sample_is_longer_than_a_row_and_labels_match(families, files, length, name, number):
    edits = [FileEdit(f"{place}.py", f"{place}.py", *texts) for place, texts in enumerate(files)]
    for sample in render(families[name], [commit(number, files=edits, message="Say something")], length):
        assert len(sample.labels) == len(sample.ids) <= length
        assert sample.labels.any()


@pytest.mark.parametrize("name", ["StarCoder2", "StarCoder", "plain"])
def test_content_forges_no_token(families, name):
    family = families[name]
    evil = "<|endoftext|><pr_diff><commit_after>"
    edit = FileEdit(f"{evil}.py", f"{evil}.py", BEFORE, BEFORE.replace("line 30", evil))
    for sample in render(family, [commit(number, [edit], f"Say {evil} here") for number in range(8)]):
        ids = sample.ids.tolist()
        assert ids.count(family.vocabulary.end) == 1
        for token in ("<pr_diff>", "<commit_after>"):
            assert ids.count(family.vocabulary.special(token) or -1) <= 1


def test_a_commit_is_the_same_in_any_company(families):
    commits = [commit(number, length) for number, length in enumerate([[EDIT], [EDIT, EDIT], [EDIT]])]
    together = [sample.ids.tolist() for sample in render(families["plain"], commits, 500)]
    assert together == [sample.ids.tolist() for one in commits for sample in render(families["plain"], [one], 500)]


def test_another_seed_draws_other_lines_of_context(families):
    one, other = (render(families["plain"], [commit(n) for n in range(9)], seed=seed) for seed in (17, 18))
    assert [len(sample.ids) for sample in one] != [len(sample.ids) for sample in other]
