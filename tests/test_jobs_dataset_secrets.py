"""Secrets are found by their shape or by the name they are given to; words, templates and samples are not."""

import random
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.secrets import entropy, find_secrets, rules_version


def made(length, letters=string.ascii_letters + string.digits, seed=1):
    """A value as a program makes it. Tests hold none as they stand, so that no scanner takes them for real."""
    chances = random.Random(seed)
    return "".join(chances.choices(letters, k=length - 2)) + "a7"


def found(text):
    return sorted(text[find.start : find.stop] for find in find_secrets(text))


HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits
KEYS = {
    "aws-access-key": "AK" + "IA" + made(16, UPPER).upper(),
    "github-token": "gh" + "p_" + made(36),
    "gitlab-token": "glp" + "at-" + made(20),
    "slack-token": "xox" + "b-" + made(40, string.digits),
    "llm-api-key": "sk" + "-proj-" + made(40),
    "stripe-key": "sk_" + "live_" + made(24),
    "google-api-key": "AI" + "za" + made(35),
    "npm-token": "np" + "m_" + made(36),
    "pypi-token": "py" + "pi-AgE" + made(60),
    "hugging-face-token": "h" + "f_" + made(34),
    "digitalocean-token": "do" + "p_v1_" + made(64, HEX),
    "sendgrid-key": "S" + "G." + made(22) + "." + made(43),
    "databricks-token": "da" + "pi" + made(32, HEX),
    "vault-token": "hv" + "s." + made(30),
    "jwt": "ey" + "J" + made(30) + ".ey" + "J" + made(60) + "." + made(43),
    "password-hash": "$2" + "b$12$" + made(53),
}


@pytest.mark.parametrize("rule", KEYS)
@pytest.mark.parametrize(
    "around", ["{}", "key = '{}'\n", "# see {} there", "print('a\\n{}')", "curl -H 'X: {}' https://h/"]
)
def test_a_key_that_tells_itself_is_found_wherever_it_stands(rule, around):
    text = around.format(KEYS[rule])
    assert (rule, KEYS[rule]) in {(find.rule, text[find.start : find.stop]) for find in find_secrets(text)}


SECRET = made(32)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('password = "hunter2"', "hunter2"),
        ('PASSWORD: Final = "hunter2"', "hunter2"),
        ("const password: string = 'p@ssw0rd';", "p@ssw0rd"),
        ('"db_password": "S3cr3t!pw",', "S3cr3t!pw"),
        ("set_password('hunter2x')", "hunter2x"),
        ("if password == 'hunter2x':", "hunter2x"),
        ("DB_PASSWORD=Str0ngPassw0rd\n", "Str0ngPassw0rd"),
        ("  password: Str0ng-Passw0rd!  # prod\n", "Str0ng-Passw0rd!"),
        ('"Server=db;User Id=sa;Password=Str0ngPw9;"', "Str0ngPw9"),
        ("<password>Str0ngPw9</password>", "Str0ngPw9"),
        ("password => 'hunter2x'", "hunter2x"),
        (f'api_token = "{SECRET}"', SECRET),
        (f"export GITHUB_SECRET={SECRET}\n", SECRET),
        (f'secretKey := "{SECRET}"', SECRET),
        (f"client_secret: {SECRET}\n", SECRET),
        (f"curl -H 'Authorization: Bearer {SECRET}'", SECRET),
        (f"https://host/path?x=1&api_key={SECRET}&y=2", SECRET),
        ("postgres://app:Tr0ub4dor@db.internal:5432/x", "Tr0ub4dor"),
        ("redis://:Tr0ub4dor@cache/0", "Tr0ub4dor"),
        (f"git clone https://{SECRET}@git.host/r.git", SECRET),
        ("Authorization: Basic " + "dXNlcjpodW50ZXIy", "dXNlcjpodW50ZXIy"),
        ('{"auths": {"h": {"auth": "' + 'dXNlcjpodW50ZXIy"}}}', "dXNlcjpodW50ZXIy"),
        (f"AccountKey={made(86)}==;", f"{made(86)}=="),
        ("\u0130\u0130 password = 'hunter2'", "hunter2"),
    ],
)
def test_a_literal_given_to_a_telling_name_is_found(text, value):
    assert value in found(text)


@pytest.mark.parametrize(
    "text",
    [
        'password = "password"',
        'password = "string"',
        "password = getpass.getpass()",
        "password = password2\n",
        "password = self.config.password1\n",
        "password=password, token=token\n",
        'password = "${DB_PASSWORD_1}"',
        'password = "{{ password1 }}"',
        'password = "<your-password-1>"',
        'password = "********"',
        'password_field = "input1"',
        'password: "Please enter your password, 8 letters"',
        'token_url = "https://auth.host/oauth2/v1/token"',
        'token_type = "oauth2-bearer-token-v2"',
        'secret_name = "projects/app-1/secrets/db-credentials-2"',
        'tokens = tokenizer.encode("text2")',
        "secret: kubernetes-secret-name-v2\n",
        "def token(self, token: Token1, other: int = 3) -> Token1:\n",
        "self.pad_token_id = config.t2u_pad_token_id\n",
        "https://user:password@host/",
        "valkey://[[username]:[password]]@localhost",
        "https://{user}:{password}@{host}/",
        "f'https://{user}:%s@host'",
        "http://localhost:8080/a@b",
        "sk-toggleable-content-2x sk-estimator-doc-link",
        "task-management-2 desk-1234567890abcdefghij",
        "Basic documentation of Basic Authentication",
        "sha256:" + made(64, HEX),
        '"version": "1.2.3", "integrity": "none"',
        "-----BEGIN PRIVATE KEY-----",
        "if '-----BEGIN PRIVATE KEY-----' in text:\n    a = 1\nif '-----END PRIVATE KEY-----' in text:\n    b = 2\n",
    ],
)
def test_words_templates_and_samples_are_no_secrets(text):
    assert found(text) == []


def armour(name, body):
    return f"-----BEGIN {name}-----\n{body}\n-----END {name}-----"


BODY = "\n".join(made(64, string.ascii_letters + string.digits + "+/", seed) for seed in range(8))


@pytest.mark.parametrize("name", ["PRIVATE KEY", "RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "PGP PRIVATE KEY BLOCK"])
@pytest.mark.parametrize(
    "written",
    [
        lambda key: key,
        lambda key: '"' + key.replace("\n", "\\n") + '"',
        lambda key: "\n".join(f'    "{line}\\n"' for line in key.split("\n")),
        lambda key: "\n".join(f"# {line}" for line in key.split("\n")),
    ],
)
def test_a_private_key_is_found_whole(name, written):
    key = written(armour(name, BODY))
    (find,) = [find for find in find_secrets(f"before\n{key}\nafter\n") if find.rule == "private-key"]
    hidden = f"before\n{key}\nafter\n"[find.start : find.stop]
    assert hidden.startswith("-----BEGIN")
    assert hidden.endswith("-----")


def test_a_private_key_without_its_end_is_found():
    text = f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\n\ndef f():\n    return 1\n"
    (find,) = [find for find in find_secrets(text) if find.rule == "private-key"]
    assert text[find.stop :] == "\n\ndef f():\n    return 1\n"


@given(text=st.text(alphabet=st.sampled_from("pasword token=:'\"@/.x1\u0130\ufdd0\n-A"), max_size=200))
def test_places_lie_inside_any_text(text):
    assert all(0 <= find.start < find.stop <= len(text) for find in find_secrets(text))


def test_hostile_texts_take_no_longer_than_others():
    for piece in ("-----BEGIN PRIVATE KEY-----", "password=", "token: ", "://a:", "eyJ", "v1.1-", "Basic ", "sk-", "a"):
        find_secrets(piece * (200_000 // len(piece)))


def test_entropy_is_in_bits_a_character():
    assert entropy("aaaa") == 0
    assert entropy("abab") == 1
    assert entropy("abcd") == 2


def test_the_rules_have_a_version():
    assert re.fullmatch("[0-9a-f]{12}", rules_version())
