"""Secrets are found by their shape or by the name they are given to; words, templates and samples are not."""

import base64
import random
import re
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.dataset.secrets import find_secrets, rules_version
from jobs.dataset.values import entropy


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


TYPED = "hunter2Xk9" + "!vQz4"
RANDOM_HEX = made(40, HEX)
B64 = base64.b64encode(TYPED.encode()).decode()


@pytest.mark.parametrize("value", [TYPED, RANDOM_HEX], ids=["typed", "random"])
@pytest.mark.parametrize(
    "text",
    [
        "PGPASSWORD={} pg_dump -U app shop\n",
        "DB_PASSWORD={} ./run.sh\n",
        "docker run -e MYSQL_ROOT_PASSWORD={} mysql:8\n",
        'dsn = "host=db user=sa password={} dbname=shop"\n',
        "tool --password {} --verbose\n",
        "tool --db-password {} in\n",
        "tool --password '{}' in\n",
        'run(["tool", "--password", "{}"])\n',
        "machine git.host login app password {}\n",
        "machine git.host\n  login app\n  password {}\nmachine other\n",
        "mysql -u app -p{} shop\n",
        "mysqldump -uapp -p'{}' shop\n",
        "sshpass -p {} ssh app@db\n",
        "sshpass -p '{}' ssh app@db\n",
        "db.internal:5432:shop:app:{}\n",
        "*:*:*:app:{}\n",
        'os.environ.setdefault("DB_PASSWORD", "{}")\n',
        '<add key="Password" value="{}" />\n',
        "**Password**: `{}`\n",
        "- **Password:** {}\n",
        "| User | app |\n| Password | {} |\n",
        "| Password | `{}` | of the shop |\n",
        "redis://cache:6379,password={},ssl=True\n",
        'PASSWORDS = ["{}", "other"]\n',
        "PASSWORD = (\n    '{}'\n)\n",
        "PASSWORD = \\\n    '{}'\n",
        "env:\n  - name: DB_PASSWORD\n    value: {}\n",
        'env:\n  - name: DB_PASSWORD\n    value: "{}"\n',
        "env:\n  - name: DB_PASSWORD\n    # of the shop\n    value: {}\n",
        'PASSWORD = """{}"""\n',
        '{{"name": "DB_PASSWORD", "value": "{}"}}\n',
        "db:\n  password: |\n    {}\n  user: app\n",
        "db:\n  password: >-\n    {}\n",
        'variable "db_password" {{\n  type = string\n  default = "{}"\n}}\n',
        "db_password = <<EOT\n{}\nEOT\n",
        "stringData:\n  shop: {}\nkind: Secret\n",
        'kind: Secret\nmetadata:\n  name: shop\nstringData:\n  shop: "{}"  # now\n\n  user: |\n    {}\ntype: Opaque\n',
    ],
)
def test_a_secret_is_found_as_it_stands_in_everyday_files(text, value):
    written = text.format(*[value] * text.count("{}"))
    assert set(found(written)) == {value}


WEAK = "s3cr" + "3tpw"


@pytest.mark.parametrize("value", [TYPED, RANDOM_HEX, WEAK], ids=["typed", "random", "weak"])
@pytest.mark.parametrize(
    "text",
    [
        # Docker and shells
        "ENV DB_PASSWORD {}\n",
        "ENV DB_PASS {}\n",
        "ENV DB_PASSWORD={}\n",
        'ENV DB_PASSWORD="{}"\n',
        "FROM base\nENV A=b \\\n    DB_PASSWORD={} \\\n    C=d\n",
        "ARG DB_PASSWORD={}\n",
        "setenv DB_PASSWORD {}\n",
        "setx DB_PASSWORD {}\n",
        "set DB_PASSWORD={}\n",
        "$env:DB_PASSWORD = '{}'\n",
        "export DB_PASSWORD='{}' # of the shop\n",
        'export DB_PASSWORD="{}"\n',
        "${{DB_PASSWORD:-{}}}\n",
        # Names
        "DB_PASS={}\n",
        "db_pass: {}\n",
        "SMTP_PASS = '{}'\n",
        'dbPass = "{}"\n',
        'dbpass = "{}"\n',
        '"pass": "{}"\n',
        'auth: {{ user: "app", pass: "{}" }}\n',
        "DB_PWD={}\n",
        "MYSQL_PASSWD={}\n",
        # YAML and JSON
        "users:\n  - password: {}\n",
        "- name: DB_PASS\n  value: {}\n",
        "- value: {}\n  name: DB_PASSWORD\n",
        '{{"value": "{}", "name": "DB_PASSWORD"}}\n',
        "environment:\n  - DB_PASSWORD={}\n",
        "password: !!str {}\n",
        '{{"apiVersion": "v1", "kind": "Secret", "stringData": {{"shop": "{}"}}}}\n',
        '{{\n  "stringData": {{\n    "shop": "{}",\n    "other": "{}"\n  }},\n  "kind": "Secret"\n}}\n',
        'apiVersion: v1\nkind: "Secret"\nstringData:\n  shop: {}\n',
        '"{{\\"password\\": \\"{}\\"}}"\n',
        # Command lines
        "curl -u app:{} https://host/\n",
        "curl -s -X GET -u 'app:{}' https://host/\n",
        'curl https://host/ --user "app:{}"\n',
        "curl -X POST \\\n  --user=app:{} \\\n  https://host/\n",
        '["curl", "-u", "app:{}"]\n',
        "docker login -u app -p {} host\n",
        "echo '{}' | docker login --password-stdin\n",
        "echo app:{} | sudo chpasswd\n",
        "openssl rsa -passin pass:{} -in key\n",
        "tool --password={} in\n",
        'tool --password="{}" in\n',
        "tool --db-pass {} in\n",
        "java -Djavax.net.ssl.trustStorePassword={} -jar shop.jar\n",
        # Connection strings
        "Server=db;Database=shop;User Id=sa;Password={};\n",
        '"Server=db;Uid=sa;Pwd={};Database=shop"\n',
        "jdbc:sqlserver://db:1433;user=sa;password={};encrypt=true\n",
        "jdbc:mysql://db/shop?user=app&password={}&ssl=true\n",
        "jdbc:oracle:thin:app/{}@db.internal:1521/shop\n",
        "amqp://app:{}@mq.internal:5672/v\n",
        "redis://:{}@cache.internal/0\n",
        # Configuration
        "[pypi]\nusername = app\npassword = {}\n",
        "//npm.host/:_password={}\n",
        "spring.datasource.password={}\n",
        "spring.datasource.password: {}\r\n",
        "requirepass {}\n",
        "<password><![CDATA[{}]]></password>\n",
        "<add connectionString='Password=&quot;{}&quot;' />\n",
        'variable "db_pass" {{\n  type = string\n  default = "{}"\n}}\n',
        'variable "db_password" {{\n  validation {{\n    condition = 1\n  }}\n  default = "{}"\n}}\n',
        # Languages
        "define('DB_PASSWORD', '{}');\n",
        "define( 'DB_PASS' , '{}' );\n",
        "$db['password'] = '{}';\n",
        "'password' => env('DB_PASSWORD', '{}'),\n",
        ":password => '{}',\n",
        ":db_pass => '{}'\n",
        "ENV['DB_PASSWORD'] || '{}'\n",
        "ENV.fetch('DB_PASSWORD', '{}')\n",
        'cfg := Config{{User: "app", Password: "{}"}}\n',
        'Config{{\n\tPass:   "{}",\n}}\n',
        'Password: []byte("{}"),\n',
        'os.Setenv("DB_PASSWORD", "{}")\n',
        'process.env.DB_PASSWORD ?? "{}"\n',
        'os.getenv("DB_PASSWORD", "{}")\n',
        'os.getenv("DB_PASSWORD") or "{}"\n',
        'let password: &str = "{}";\n',
        'let password = String::from("{}");\n',
        'password = SecretStr("{}")\n',
        'char password[] = "{}";\n',
        '#define DB_PASSWORD "{}"\n',
        'password <- "{}"\n',
        "CREATE USER app IDENTIFIED BY '{}';\n",
        "ALTER USER app WITH PASSWORD '{}';\n",
        "requests.get(url, auth=('app', '{}'))\n",
        "HTTPBasicAuth('app', '{}')\n",
    ],
)
def test_even_a_weak_password_is_found_where_it_is_told_by_what_stands_around(text, value):
    written = text.format(*[value] * text.count("{}"))
    assert set(found(written)) == {value}


@pytest.mark.parametrize(
    "text",
    [
        "ARG X_TOKEN={}\n",
        "ENV X_TOKEN {}\n",
        "ENV SECRET_KEY {}\n",
        "- token: {}\n",
        "- name: API_TOKEN\n  value: {}\n",
        "//npm.host/:_authToken={}\n",
        "export X_TOKEN='{}'\n",
        "tool --token={} push\n",
        "tool --api-key {} push\n",
        'variable "api_token" {{\n  default = "{}"\n}}\n',
        "define('API_KEY', '{}');\n",
        "app.api.key={}\n",
        ":secret_key_base => '{}'\n",
        'Config{{APIKey: "{}"}}\n',
        'encryptionKey: "{}"\n',
        "signingKey: {}\n",
        "MASTER_KEY={}\n",
        "_auth={}\n",
    ],
)
def test_a_random_key_is_found_by_its_name(text):
    assert found(text.format(RANDOM_HEX)) == [RANDOM_HEX]


@pytest.mark.parametrize("text", ["_auth={}\n", '//npm.host/:_auth = "{}"\n', "curl -H 'Authorization: Basic {}'\n"])
def test_a_user_and_password_in_base64_are_found(text):
    both = base64.b64encode(f"app:{TYPED}".encode()).decode()
    assert set(found(text.format(both))) == {both}


def test_the_signature_of_a_shared_link_is_found():
    signature = made(43) + "%3D"
    assert found(f"https://host/files?sv=2022-11-02&sr=b&sig={signature}&se=2030\n") == [signature]


def test_the_salts_of_a_blog_are_found():
    salt = made(30) + " {" + made(30) + "]"
    assert found(f"define( 'SECURE_AUTH_SALT', '{salt}' );\n") == [salt]


def test_the_key_of_a_service_account_is_found_whole():
    key = armour("PRIVATE KEY", BODY).replace("\n", "\\n")
    assert key in found(f'{{"type": "service_account", "private_key": "{key}\\n", "client_id": "1"}}\n')


@pytest.mark.parametrize(
    "text",
    [
        "tool --token {} push\n",
        "API_TOKEN={} ./run.sh\n",
        "curl -H 'Authorization: token {}' https://host/\n",
        '{{"Authorization": "Token {}"}}\n',
        'API_KEYS = ["{}", "other"]\n',
        'API_KEYS = [\n    "other",  # one\n    "{}",\n]\n',
        'API_KEY = (\n    "{}"\n)\n',
        "SECRET = \\\n    '{}'\n",
        "api_key: >-\n  {}\n",
        '{{"kty": "EC", "crv": "P-256", "x": "abc", "d": "{}"}}\n',
        "| API key | `x` |\n| api_key | {} |\n",
    ],
)
def test_a_random_key_is_found_as_it_stands_in_everyday_files(text):
    assert found(text.format(RANDOM_HEX)) == [RANDOM_HEX]


def test_every_value_of_a_kubernetes_secret_is_found():
    text = f"apiVersion: v1\nkind: Secret\ndata:\n  shop: {B64}\n  other: {B64}\n---\nkind: Pod\ndata:\n  shop: {B64}\n"
    assert found(text) == [B64, B64]


HALF = len(RANDOM_HEX) // 2


@pytest.mark.parametrize("join", ['" "', '" + "', '"\n    "', '" \\\n    "', '" +\n    "', '"\n    + "'])
@pytest.mark.parametrize(
    ("before", "first", "second", "after"),
    [
        ('API_KEY = ("', RANDOM_HEX[:4], RANDOM_HEX[4:], '")\n'),
        ('API_KEY = "', RANDOM_HEX[:HALF], RANDOM_HEX[HALF:], '"\n'),
        ('password = "', "Vq", "9!xTr0ub4", '"\n'),
        ('url = "', "postgres://app:", "Tr0ub4dor@db.internal/shop", '"\n'),
        ('url = "', "postgres://app:Tr0ub4dor", "@db.internal/shop", '"\n'),
        ('API_KEYS = ["', RANDOM_HEX[:HALF], RANDOM_HEX[HALF:], '"]\n'),
    ],
)
def test_a_secret_that_is_put_together_of_literals_is_found(join, before, first, second, after):
    text = before + first + join + second + after
    whole = (first + second).removeprefix("postgres://app:").removesuffix("@db.internal/shop")
    left = "".join(text[find.start : find.stop] for find in find_secrets(text)).replace(join, "")
    assert whole in left


@pytest.mark.parametrize(
    "text",
    [
        "password = get_password()\n",
        "token: str\n",
        "def login(password=None, token=None) -> None:\n",
        "tool --password PASSWORD --token TOKEN\n",
        "tool --password <password1> --token $TOKEN_2\n",
        'secret = os.environ["SECRET_2"]\n',
        "api_key: ${API_KEY_2}\n",
        'tokens = ["if", "else", "elif2"]\n',
        'tokens = ["BertForQuestionAnswering", "GPT2ForTokenClassification"]\n',
        "The password must have 8 letters; a token lasts for 24h at most.\n",
        "password: sha256 of what was typed in\n",
        "password = sha256_digest or other\n",
        "| Password | at least 8 characters |\n",
        "password | string1 | None\n",
        'x = {"token": "bert2", "name": "v1"}\n',
        'parser.add_argument("--password", help="8 letters!")\n',
        'parser.add_argument("--token", "-t2")\n',
        'names = ["password", "user_name2", "id"]\n',
        "  - name: DB_PASSWORD\n    valueFrom:\n      secretKeyRef:\n        name: shop-db-2\n",
        "  - name: DB_PASSWORD\n    value: ${DB_PASSWORD_2}\n",
        "password: |\n  The password of 2 people\n",
        'variable "db_password" {\n  type = string\n}\nvariable "x" {\n  default = "hunter2x"\n}\n',
        'message = ("token" "type2")\n',
        "kind: SecretStore\ndata:\n  shop: aHVudGVyMng=\n",
        "kind: Secret\ndata:\n  shop: {{ .Values.shop | b64enc }}\nstringData:\n  a: changeme\n",
        "kind: ConfigMap\ndata:\n  shop: aHVudGVyMng=\n---\nkind: Pod\n",
        "docker run -p3306:3306 mysql -port8080\n",
        "login as the user, with password and token1\n",
        '{"kty": "EC", "x": "' + made(43) + '", "y": "' + made(43) + '"}',
        'EXPECTED = "' + made(64) + '"\n',
        'print("-----BEGIN " "CERTIFICATE-----")\n',
        "ENV PASSWORD_FILE /run/secrets/password1\n",
        "ENV API_TOKEN\nENV TOKEN_URL https://host/v1/token2\n",
        "the environment ENV DB_PASSWORD sha256sum2 of it\n",
        "#define PASSWORD_LENGTH 12\n#define TOKEN_TYPE type2token\n",
        "    pass  # s3cr3tpw\n",
        "bypass = 's3cr3tpw'\ncompass: n0rth3ast\nencompass='s3cr3tpw'\n",
        "pass-through: s3cr3tpw\n",
        "first_pass = 'sha256'\nPass: 100%\n",
        '{"pass": 12, "fail": 3}\n',
        "tool --pass 12345678 --first-pass\n",
        "- name: A\n  value: s3cr3tpw\n- name: DB_PASSWORD\n  valueFrom: x\n",
        '[{"name": "A", "value": "s3cr3tpw"}, {"name": "DB_PASSWORD"}]\n',
        '{"kind": "Secret", "data": {"shop": "{{ .Values.shop }}"}, "spec": {"data": {"shop": "aHVudGVyMng="}}}\n',
        '[{"kind": "Secret"}, {"kind": "ConfigMap", "data": {"shop": "aHVudGVyMng="}}]\n',
        '{"kind": "SecretStore", "data": {"shop": "aHVudGVyMng="}}\n',
        "curl -u user:password https://host/\ncurl -u $USER:$PASS https://host/\ncurl -U app:password1 https://host/\n",
        "curl -u {user}:{password2} https://host/\ncurl --user-agent=Mozilla:v5x7q9z https://host/\n",
        "docker login -p $PASSWORD_2 host\n",
        "echo $PASSWORD_2 | docker login --password-stdin\n",
        "https://host/?sig=abc&sig=" + made(20) + "\n",
        "requests.get(url, auth=('user', 'pass'))\nrequests.get(url, auth=(user1, pass1))\n",
        'password = os.getenv("DB_PASSWORD_2")\ntoken = get("X-Token2")\n',
        'password = args.password or ""\nif password or "utf8" in text:\n    pass\n',
        "define('PASSWORD_BCRYPT', '2y');\ndefine('DB_PASSWORD', 'database_name_here');\n",
        "define('AUTH_KEY', 'put your unique phrase here');\n",
        "_auth=None\nrequests_auth=HTTPBasicAuth\n",
        "requirepass foobared\n",
        "IDENTIFIED BY 'password'\n",
        "token <- 16\nif token<-16:\n",
    ],
)
def test_code_and_prose_about_secrets_hold_none(text):
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


FIELDS = "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0123456789ABCDEF\n\n"
SSH2 = "SSH2 ENCRYPTED PRIVATE KEY"
CODE = "\n\ndef f(value):\n    return value + 1\n" * 20


@pytest.mark.parametrize(
    "text",
    [
        f"-----BEGIN RSA PRIVATE KEY-----\n{FIELDS}{BODY}\n",
        f"-----BEGIN RSA PRIVATE KEY-----\n{FIELDS}{BODY}{CODE}-----END RSA PRIVATE KEY-----\n",
        f"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v2\nComment: mine\n\n{BODY}\n=a7Bc\n",
        "KEY = '-----BEGIN RSA PRIVATE KEY-----\\n" + (FIELDS + BODY).replace("\n", "\\n") + "'\n",
        f"-----begin rsa private key-----\n{BODY}\n-----end rsa private key-----\n",
        f"---- BEGIN {SSH2} ----\nComment: 'a b'\n{BODY}\n---- END {SSH2} ----\n",
        f"PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 8\n{BODY}\nPrivate-MAC: 12\n",
        '"-----BEGIN EC " + "PRIVATE KEY-----\\n" +\n' + " +\n".join(f'"{line}\\n"' for line in BODY.split("\n")),
        "'-----' + 'BEGIN EC PRIVATE KEY-----\\n'\n" + "\n".join(f"'{line}\\n'" for line in BODY.split("\n")),
        f'header = "-----BEGIN EC " + "PRIVATE KEY-----\\n" + """\n{BODY}\n"""\n',
    ],
)
def test_a_private_key_in_any_armour_is_found(text):
    hidden = "".join(text[find.start : find.stop] for find in find_secrets(text) if find.rule == "private-key")
    assert all(line in hidden for line in BODY.split("\n"))
    assert "return" not in hidden


@given(text=st.text(alphabet=st.sampled_from("pasword token=:'\"@/.x1\u0130\ufdd0\n-A"), max_size=200))
def test_places_lie_inside_any_text(text):
    assert all(0 <= find.start < find.stop <= len(text) for find in find_secrets(text))


HOSTILE = [
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN ", '-----BEGIN " + "', "Private-Lines: 8\n", "Private-Lines: 8\nA: b\n",
    "password=", "password: |\n ", 'password"', 'password" {', 'password" { default', "password = (\n", "password'\\",
    "token: ", "token s ", 'tokens = ["', 'token = ["a", ', '"token" "', "--token ", "-password ", "| password ",
    "://a:", '://a:" "', "://", "eyJ", "v1.1-", "Basic ", "sk-", "a", '"a" + ', '" "', '"\n', "A: b\n", "\n",
    "mysql ", "mysql -p", "mysql -p'a'", "sshpass -p ", "login a password ", "login ", ":5432:", ":*:a",
    "authorization: ",
    "ENV DB_PASSWORD ", "curl -u ", "echo a ", "echo ", '"kind": "Secret"', '"data": {"',
    '"kind": "Secret", "data": {', '{"kind": "Secret"}', "value: a name: password ", "value: ", "_auth=", "login -p ",
    'password" {{}', 'password" {}', '{password" {a}', "&quot;password&quot;", "pass ",
    "htpasswd ", "auth=('a', '", "define('", "-pass ", "password = str.from.", "password: &'a", "password || ",
    '\\"password\\": \\"', '"data": {\\"', '\\"', '"data": {"a": "',
    "kind: Secret\n", "kind: Secret\ndata:\n  a: b\n", "data:\n", " a: |\n", '{"kty":', '{"kty": "d": "', "kty",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_texts_take_no_longer_than_others(piece):
    def seconds(length):
        start = time.process_time()
        find_secrets('kind: Secret\n"kind": "Secret"' + piece * (length // len(piece)))
        return time.process_time() - start

    # Ten times the text: linear work takes ten times as long on a quiet machine, quadratic work a hundred times.
    assert seconds(200_000) < 40 * max(seconds(20_000), 0.02)


def test_entropy_is_in_bits_a_character():
    assert entropy("aaaa") == 0
    assert entropy("abab") == 1
    assert entropy("abcd") == 2


def test_the_rules_have_a_version():
    assert re.fullmatch("[0-9a-f]{12}", rules_version())
