"""People's addresses are found; samples, remotes, versions and operators are not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.emails import find_emails


def found(text):
    return [text[find.start : find.stop] for find in find_emails(text)]


@pytest.mark.parametrize(
    ("text", "addresses"),
    [
        ("Mail me@kennethreitz.org.", ["me@kennethreitz.org"]),
        ("Signed-off-by: A B <a.b+c@sub.host.co.uk>\n", ["a.b+c@sub.host.co.uk"]),
        ("author='a@host.de', b='c_d@host.io'", ["a@host.de", "c_d@host.io"]),
        ("1+x@users.noreply.github.com", ["1+x@users.noreply.github.com"]),
        ("mailto:office@firm.intranet", ["office@firm.intranet"]),
        ("J\u00f6rg.M\u00fcller@m\u00fcller.de", ["J\u00f6rg.M\u00fcller@m\u00fcller.de"]),
        ("to me@host.com: hello", ["me@host.com"]),
        ("A@HOST.COM", ["A@HOST.COM"]),
        ("...a@host.com", ["a@host.com"]),
    ],
)
def test_an_address_is_found_whole(text, addresses):
    assert found(text) == addresses


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com a@b.example.org x@y.test x@z.invalid",
        "git@github.com:psf/requests.git",
        "deploy@server.com:/srv/www",
        "ssh://git@github.com/psf/requests",
        "@app.route('/') @name @org/package",
        "name@1.2.3 actions/checkout@v4 pkg@latest",
        "icon@2x.png getty@tty1.service",
        "q@k.transpose(-2, -1) + a@b.T + w@layer.bias",
        "a @ b.com",
        "@",
        "x@",
    ],
)
def test_what_only_looks_like_an_address_is_none(text):
    assert found(text) == []


@given(text=st.text(alphabet=st.sampled_from("ab@.-_:/<>1\u00e9\ufdd0 "), max_size=60))
def test_places_lie_inside_any_text(text):
    assert all(0 <= find.start < find.stop <= len(text) for find in find_emails(text))


def test_a_text_of_signs_takes_no_long_time():
    for piece in ("@", "a@", "a.", "a@a.", "a@b.com"):
        list(find_emails(piece * 50_000))
