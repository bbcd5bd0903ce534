"""Which database is used, by which rule, and how its address is read, written and shown."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest

from comfyflow.dsn import Database, DatabaseKind, choose, parse_env_file
from comfyflow.errors import StoreError

SECRET = "p4ss-W0rd"
STACK = {
    "POSTGRES_HOST": "db",
    "POSTGRES_PORT": "5433",
    "POSTGRES_USER": "n8n",
    "POSTGRES_PASSWORD": SECRET,
    "POSTGRES_DB": "flows",
}


def as_asyncpg_reads(database: Database) -> tuple[list[Any], Any]:
    """Addresses and parameters that asyncpg would connect with: the judge of what we write."""
    read = importlib.import_module("asyncpg.connect_utils")._parse_connect_dsn_and_args
    left_open = dict.fromkeys(inspect.signature(read).parameters)
    addresses, parameters = read(**(left_open | {"dsn": database.dsn}))
    return addresses, parameters


@pytest.fixture(autouse=True)
def no_libpq_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE", "PGSSLMODE"):
        monkeypatch.delenv(name, raising=False)


# which rule


ALL_RULES = {
    "COMFYFLOW_DATABASE_URL": "postgresql://own/x",
    "DATABASE_URL": "postgresql://general/x",
    **STACK,
    "PGHOST": "libpq",
}


@pytest.mark.parametrize(
    ("without", "flag", "rule", "host"),
    [
        ([], "postgresql://flag/x", "--database", "flag"),
        ([], None, "COMFYFLOW_DATABASE_URL", "own"),
        (["COMFYFLOW_DATABASE_URL"], None, "DATABASE_URL", "general"),
        (["COMFYFLOW_DATABASE_URL", "DATABASE_URL"], None, "POSTGRES_*", "db"),
        (["COMFYFLOW_DATABASE_URL", "DATABASE_URL", *STACK], None, "libpq variables", "libpq"),
    ],
)
def test_the_first_that_is_set_decides(without: list[str], flag: str | None, rule: str, host: str) -> None:
    env = {name: "" if name in without else value for name, value in ALL_RULES.items()}
    database = choose(env, flag)
    assert (database.kind, database.rule) == (DatabaseKind.SERVER, rule)
    assert database.target.startswith(f"{host}:")


def test_with_nothing_set_it_is_the_embedded_one() -> None:
    database = choose({"PATH": "/bin", "DATABASE_URL": " "})
    assert database == Database(DatabaseKind.EMBEDDED, "default")
    assert (database.dsn, database.shown, database.target) == ("", "embedded", "embedded")


@pytest.mark.parametrize("word", ["none", "embedded", " NONE "])
def test_the_words_are_for_the_flag_and_our_own_variable(word: str) -> None:
    kind = DatabaseKind(word.strip().lower())
    assert choose({}, word) == Database(kind, "--database")
    assert choose({"COMFYFLOW_DATABASE_URL": word}) == Database(kind, "COMFYFLOW_DATABASE_URL")
    assert choose({}, word).shown == choose({}, word).target == kind.value
    with pytest.raises(StoreError, match="DATABASE_URL: this is no database address") as caught:
        choose({"DATABASE_URL": word})
    assert "'embedded' and 'none' are for --database and COMFYFLOW_DATABASE_URL alone" in str(caught.value)


def test_an_empty_flag_is_not_passed_over() -> None:
    with pytest.raises(StoreError, match="--database: this is no database address"):
        choose(ALL_RULES, "")


# the stack's variables


def test_the_variables_of_the_stack_make_an_address() -> None:
    database = choose(STACK)
    addresses, parameters = as_asyncpg_reads(database)
    assert addresses == [("db", 5433)]
    assert (parameters.user, parameters.password, parameters.database) == ("n8n", SECRET, "flows")


def test_what_the_stack_leaves_open_is_as_in_the_official_image() -> None:
    assert choose({"POSTGRES_HOST": "db"}).dsn == "postgresql://postgres@db/postgres"
    assert choose({"POSTGRES_HOST": "db", "POSTGRES_USER": "n8n"}).dsn == "postgresql://n8n@db/n8n"


def test_without_a_host_the_stack_does_not_decide() -> None:
    env = {name: value for name, value in STACK.items() if name != "POSTGRES_HOST"}
    assert choose(env).kind is DatabaseKind.EMBEDDED


def test_a_port_that_a_container_link_has_set_is_understood() -> None:
    env = STACK | {"POSTGRES_PORT": "tcp://10.0.0.7:5434"}
    assert choose(env).target == "db:5434/flows"


def test_a_password_may_lie_in_a_file() -> None:
    env = STACK | {"POSTGRES_PASSWORD": "", "POSTGRES_PASSWORD_FILE": "/run/secrets/pg"}
    files = {"/run/secrets/pg": f"{SECRET}\n"}
    assert as_asyncpg_reads(choose(env, read=files.__getitem__))[1].password == SECRET
    assert as_asyncpg_reads(choose(env))[1].password is None


def test_a_password_file_that_cannot_be_read_is_told() -> None:
    def read(path: str) -> str:
        raise FileNotFoundError(path)

    env = STACK | {"POSTGRES_PASSWORD": "", "POSTGRES_PASSWORD_FILE": "/run/secrets/pg"}
    with pytest.raises(
        StoreError, match=r"POSTGRES_PASSWORD_FILE: the file '/run/secrets/pg' cannot be read"
    ):
        choose(env, read=read)


# libpq's variables


@pytest.mark.parametrize(
    ("env", "target"),
    [
        ({"PGHOST": "h"}, "h:5432/"),
        ({"PGHOST": "/run/pg", "PGPORT": "6432", "PGUSER": "u"}, "/run/pg:6432/u"),
        ({"PGHOSTADDR": "10.0.0.7", "PGDATABASE": "d"}, "10.0.0.7:5432/d"),
        ({"PGPORT": "6432"}, "localhost:6432/"),
        ({"PGUSER": "u"}, "localhost:5432/u"),
        ({"PGSERVICE": "studio", "PGHOST": "h"}, "service=studio"),
    ],
)
def test_a_variable_of_libpq_decides(env: dict[str, str], target: str) -> None:
    database = choose(env)
    assert (database.rule, database.target) == ("libpq variables", target)


def test_a_password_alone_does_not_decide() -> None:
    assert choose({"PGPASSWORD": SECRET}).kind is DatabaseKind.EMBEDDED


def test_variables_of_libpq_fill_what_an_address_leaves_open() -> None:
    env = {"PGHOST": "other", "PGPORT": "6432", "PGPASSWORD": SECRET, "PGSSLMODE": "disable", "PGUSER": "u"}
    addresses, parameters = as_asyncpg_reads(choose(env, "postgresql://h/d"))
    assert addresses == [("h", 6432)]
    assert (parameters.user, parameters.password, parameters.database) == ("u", SECRET, "d")
    assert parameters.ssl is False


def test_a_password_without_a_user_is_kept() -> None:
    database = choose({"PGHOST": "h", "PGPASSWORD": SECRET})
    assert as_asyncpg_reads(database)[1].password == SECRET
    assert SECRET not in database.shown


def test_a_service_is_left_to_asyncpg() -> None:
    database = choose({"PGHOST": "h"}, "postgresql://u@/?service=studio")
    assert database.dsn == "postgresql://u@?service=studio"
    assert database.shown == "service studio"


# how an address is read


@pytest.mark.parametrize(
    ("text", "addresses", "account"),
    [
        ("postgres://u:p@h/d", [("h", 5432)], ("u", "p", "d")),
        ("postgresql://u@H:1234", [("h", 1234)], ("u", None, "u")),
        ("postgresql+asyncpg://u@h/d", [("h", 5432)], ("u", None, "d")),
        ("postgresql://u:a%40b%2Fc%3F@h/d%20e", [("h", 5432)], ("u", "a@b/c?", "d e")),
        ("postgresql://u:a@b+c@h/d", [("h", 5432)], ("u", "a@b+c", "d")),
        ("postgresql://u@h/d?password=a+b", [("h", 5432)], ("u", "a+b", "d")),
        ("postgresql://u@[::1]:99/d", [("::1", 99)], ("u", None, "d")),
        ("postgresql://u@/?host=/run/pg&port=99&database=d", ["/run/pg/.s.PGSQL.99"], ("u", None, "d")),
        ("postgresql://u@%2Frun%2Fpg/d", ["/run/pg/.s.PGSQL.5432"], ("u", None, "d")),
        ("postgresql://u@a,[::1]:99/d", [("a", 5432), ("::1", 99)], ("u", None, "d")),
        ("postgresql://u@a,b:98/d", [("a", 5432), ("b", 98)], ("u", None, "d")),
        ("host=h port=99 user=u dbname=d", [("h", 99)], ("u", None, "d")),
        (r"host = '/a b' user=u password='it\'s \\' dbname=d", ["/a b/.s.PGSQL.5432"], ("u", "it's \\", "d")),
        ("hostaddr=10.0.0.7 user=u dbname=d", [("10.0.0.7", 5432)], ("u", None, "d")),
        ("host=a,b port=99 user=u", [("a", 99), ("b", 99)], ("u", None, "u")),
    ],
)
def test_an_address_is_read_as_libpq_reads_it(
    text: str, addresses: list[Any], account: tuple[Any, ...]
) -> None:
    found, parameters = as_asyncpg_reads(choose({}, f" {text}\n"))
    assert found == addresses
    assert (parameters.user, parameters.password, parameters.database) == account


def test_options_pass_through_but_for_those_that_the_server_would_refuse() -> None:
    text = "postgresql://u@h/d?sslmode=disable&channel_binding=require&pgbouncer=true&application_name=a+b"
    _, parameters = as_asyncpg_reads(choose({}, f"{text}&schema=studio&connect_timeout=3&options="))
    assert parameters.ssl is False
    assert parameters.server_settings == {"application_name": "a+b", "search_path": "studio"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SECRET, "no database address"),
        (f"u:{SECRET}@h/d", "no database address"),
        (f"host=h {SECRET}", "no database address"),
        (f"postgresql://u:#{SECRET}@h/d", "no database address"),
        (f"mysql://u:{SECRET}@h/d", "a mysql:// address is not one of PostgreSQL"),
        (f"postgresql://u:12/{SECRET}@h/d", "a '/' before the '@'"),
        (f"postgresql://{SECRET}:{SECRET}/d", "the host in the database address cannot be read"),
        (f"postgresql://u@h/d?{SECRET}", "not name=value"),
        (f"postgresql://u:{SECRET}@h:70000/d", "the port"),
        (f"postgresql://u:{SECRET}@h:0/d", "the port"),
        (f"host=h port=x password={SECRET}", "the port"),
        (f"postgresql://u:{SECRET}@a,/d", "one of the hosts"),
        (f"host=a,b,c port=1,2 password={SECRET}", "3 hosts but 2 ports"),
        (f"postgresql://u:%00{SECRET}@h/d", "control character"),
    ],
)
def test_what_is_no_address_is_refused_without_being_shown(text: str, reason: str) -> None:
    with pytest.raises(StoreError) as caught:
        choose({"DATABASE_URL": text})
    told = str(caught.value)
    assert told.startswith("DATABASE_URL: ")
    assert reason in told
    assert "write it like postgresql://user:password@host:5432/database" in told
    assert SECRET not in told


# what may be shown


@pytest.mark.parametrize(
    ("text", "shown", "target"),
    [
        (f"postgresql://u:{SECRET}@h/d", "postgresql://u@h/d", "h:5432/d"),
        (f"postgresql://u@H:99/d?password={SECRET}", "postgresql://u@h:99/d", "h:99/d"),
        (f"postgresql://u@h/d?sslpassword={SECRET}", "postgresql://u@h/d", "h:5432/d"),
        (f"host=/run/pg user=u password={SECRET}", "postgresql://u@/u?host=/run/pg", "/run/pg:5432/u"),
        (f"host=a,b user=u password={SECRET}", "postgresql://u@/u?host=a,b", "a:5432,b:5432/u"),
        ("postgresql://[::1]/a/b", "postgresql://[::1]/a%2Fb", "[::1]:5432/a%2Fb"),
        ("postgresql://", "postgresql://", "localhost:5432/"),
        (f"postgresql://?service=s&password={SECRET}", "service s", "service=s"),
    ],
)
def test_a_password_is_never_shown(text: str, shown: str, target: str) -> None:
    database = choose({}, text)
    assert (database.shown, database.target) == (shown, target)
    assert SECRET not in f"{database!r}{database}"


def test_two_ways_of_writing_an_address_have_the_same_target() -> None:
    ways = ["postgres://u@Studio/d", "postgresql://x:y@studio:5432/d?sslmode=require", "host=studio dbname=d"]
    assert {choose({}, text).target for text in ways} == {"studio:5432/d"}


def test_a_database_of_our_own_is_another_one_in_each_folder() -> None:
    here, there = (Database(DatabaseKind.EMBEDDED, "default", folder=name) for name in ("/here", "/there"))
    assert (here.target, there.target) == ("embedded:/here", "embedded:/there")
    assert here.shown == there.shown == "embedded"


# .env


def test_a_file_of_variables_is_read_as_docker_compose_does() -> None:
    text = "\ufeff# the stack\r\nPOSTGRES_USER=n8n\r\n\r\nexport POSTGRES_DB = flows # the name\r\n"
    text += "EMPTY=\nONLY_A_COMMENT= # nothing\nHASH=a#b\nNOT SET\n=nothing\nSAME=1\nSAME=2\nDOLLAR=a$b${C}"
    assert parse_env_file(text) == {
        "POSTGRES_USER": "n8n",
        "POSTGRES_DB": "flows",
        "EMPTY": "",
        "ONLY_A_COMMENT": "",
        "HASH": "a#b",
        "SAME": "2",
        "DOLLAR": "a$b${C}",
    }


def test_quotes_keep_what_is_between_them() -> None:
    text = """A='a # b\\n $c' # comment\nB="tab\\there \\"x\\" \\\\ \\$d\\n#e"\nC="two\nlines"\n"""
    text += """D=it's\nE="open\nF=f"""
    assert parse_env_file(text) == {
        "A": "a # b\\n $c",
        "B": 'tab\there "x" \\ $d\n#e',
        "C": "two\nlines",
        "D": "it's",
        "E": '"open',
        "F": "f",
    }
