"""The command line: parse, call, print, exit code. It holds no rule of its own.

What takes long to import is imported inside the commands that need it, so that `--help` answers at once.
"""

# ruff: noqa: I001 - the order of import is the order of --help

from .app import app
from . import jobs, batch, workflows, rescue, server, servers, records, database

__all__ = ["app", "batch", "database", "jobs", "records", "rescue", "server", "servers", "workflows"]
