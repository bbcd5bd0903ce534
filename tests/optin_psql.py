"""The files of sql/ by the hands of a DBA: with a real psql.

Not collected by itself, because it needs PostgreSQL's client programs: ./dev test tests/optin_psql.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from clusters import Cluster, execute, schema, with_database

SQL = Path(__file__).parent.parent / "sql"


def client(cluster: Cluster, program: str, dsn: str, *arguments: str) -> str:
    """What the program says: the one beside the server, else that of PATH."""
    found = shutil.which(program, path=f"{cluster.binaries}{os.pathsep}{os.environ['PATH']}")
    assert found, f"install {program} for this test: apt-get install postgresql-client"
    known = dsn.partition("&target_session_attrs")[0]  # psql 13 does not know all of its words
    done = subprocess.run([found, *arguments, known], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def psql(cluster: Cluster, dsn: str, path: Path) -> None:
    client(cluster, "psql", dsn, "--no-psqlrc", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(path))


def dump(cluster: Cluster, dsn: str) -> str:
    """The schema as pg_dump tells it, without the key that is another one each time (PostgreSQL 15.14)."""
    text = client(cluster, "pg_dump", dsn, "--schema-only")
    return re.sub(r"^\\(un)?restrict .*$", "", text, flags=re.MULTILINE)


def test_by_psql_and_by_command_give_the_same_schema_and_roles_can_be_made(cluster: Cluster) -> None:
    execute(cluster.dsn, "CREATE DATABASE by_hand")
    by_hand = with_database(cluster.dsn, "by_hand")
    for path in sorted(SQL.glob("[0-9]*.sql")) * 2:
        psql(cluster, by_hand, path)
    assert schema(by_hand) == schema(cluster.dsn)
    told = dump(cluster, by_hand)
    assert told == dump(cluster, cluster.dsn)
    assert "CREATE TABLE public.generated_assets" in told
    for _ in range(2):
        psql(cluster, by_hand, SQL / "roles.sql")
    [[row]] = execute(by_hand, "SELECT has_table_privilege('comfyflow_writer', 'generated_assets', 'INSERT')")
    assert row[0]
