"""The ledger's tables, how a database is opened, and how an older one is brought up to date.

One database holds any number of *logs*, one for each server, so that a fleet on one PostgreSQL needs no coordination:
each log has an origin, its own consecutive leaf indices and its own tree.

=============== ======================================================================================
``logs``        a log's origin, its head (size, root, frontier) and the session of its writer, if any
``entries``     one row a leaf: responses and the beginnings, ends and gaps of sessions
``nodes``       the tree's hashes at levels 8, 16, ... (`watermark.merkle`)
``checkpoints`` the heads that were signed
=============== ======================================================================================

SQLite runs in WAL mode with synchronous=FULL: a batch that was committed survives a power failure, not only the end of
the process. NORMAL would save one fsync a batch, off every request's path, and could after a power failure bring back
a log that is shorter than a checkpoint that was published; what was appended then would contradict it.
"""

from __future__ import annotations

import io
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from watermark.errors import LedgerError, MissingExtraError, UsageError, printable

try:
    import sqlalchemy as sa
except ImportError:
    raise MissingExtraError("the ledger needs sqlalchemy: pip install 'taggant[ledger]'") from None

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = [
    "CHECKPOINTS",
    "ENTRIES",
    "LOGS",
    "METADATA",
    "NODES",
    "VERSION_TABLE",
    "check_version",
    "chosen_url",
    "connect_engine",
    "ledger_url",
    "migration_config",
    "shown_url",
    "upgrade",
]

#: Alembic's table, of a name of its own: a fleet's PostgreSQL may hold more than the ledger.
VERSION_TABLE: Final = "taggant_ledger_version"

METADATA: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

LOGS: Final = sa.Table(
    "taggant_logs",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("origin", sa.Text, nullable=False, unique=True),
    sa.Column("created", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("frontier", sa.LargeBinary, nullable=False),
    # The writer's: all null between sessions.
    sa.Column("session", sa.Text),
    sa.Column("opened", sa.Text),
    sa.Column("seen", sa.Text),
    sa.Column("accepted", sa.BigInteger),
    sa.Column("written", sa.BigInteger),
)

ENTRIES: Final = sa.Table(
    "taggant_entries",
    METADATA,
    sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("leaf_index", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("id", sa.Text, nullable=False),
    sa.Column("started", sa.Text, nullable=False),
    sa.Column("ended", sa.Text, nullable=False),
    sa.Column("account", sa.Text),
    sa.Column("model", sa.Text),
    sa.Column("scope", sa.Text),
    sa.Column("fingerprint", sa.Text),
    sa.Column("scheme", sa.Text),
    sa.Column("parameters", sa.Text, nullable=False),
    sa.Column("marked", sa.Boolean(create_constraint=False)),
    sa.Column("reason", sa.Text),
    sa.Column("digests", sa.Text, nullable=False),
    sa.Column("nonce", sa.LargeBinary, nullable=False),
    sa.Column("leaf_hash", sa.LargeBinary, nullable=False),
    # What was said, as retention has it. Bytes, since a model's text may hold a NUL, which PostgreSQL's text cannot.
    sa.Column("token_ids", sa.LargeBinary),
    sa.Column("prompt_token_ids", sa.LargeBinary),
    sa.Column("response", sa.LargeBinary),
    sa.Column("prompt", sa.LargeBinary),
    sa.Index("ix_taggant_entries_id", "id"),
    sa.Index("ix_taggant_entries_started", "started", "log_id", "leaf_index"),
)

NODES: Final = sa.Table(
    "taggant_nodes",
    METADATA,
    sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("level", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)

CHECKPOINTS: Final = sa.Table(
    "taggant_checkpoints",
    METADATA,
    sa.Column("log_id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("verifier", sa.Text, primary_key=True),
    sa.Column("signed", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
)

#: Serialises migrations on PostgreSQL: an arbitrary constant.
_MIGRATION_LOCK: Final = 0x7461_6767_616E_7401

_BUSY_TIMEOUT_MS: Final = 10_000

#: 32 MiB of write-ahead log between checkpoints, eight times SQLite's default: the index on ids is written at random
#: places, and a place that is hit several times is then written once. Took a third off the time of a batch.
_WAL_PAGES: Final = 8192

#: Memory for pages, mostly those of that index; 2 MiB by default.
_CACHE_KIB: Final = 65_536


def chosen_url(option: str | None) -> str:
    """Return the database that a command is for: its option, or the environment variable TAGGANT_LEDGER.

    Raises:
        UsageError: neither is given, or the option holds a password, which every user of the machine could read.
    """
    if option is None:
        found = os.environ.get("TAGGANT_LEDGER")
        if not found:
            raise UsageError("name the ledger: --db FILE_OR_URL, or the environment variable TAGGANT_LEDGER")
        return found
    if ledger_url(option).password is not None:
        raise UsageError(
            "--db: a password on the command line is there for everybody to read: put the URL into the environment "
            "variable TAGGANT_LEDGER, or the password into ~/.pgpass"
        )
    return option


def ledger_url(given: str | os.PathLike[str]) -> sa.URL:
    """Return the database's URL: of a path, ``sqlite:///PATH`` or ``postgresql://...``.

    Raises:
        UsageError: it is none of these. The text is not repeated, since it may hold a password.
    """
    text = os.fspath(given)
    if "://" not in text:
        if not text or text == ":memory:":
            raise UsageError("ledger: expected a file's name or a database's URL, found none")
        return sa.URL.create("sqlite", database=text)
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):
        raise UsageError("ledger: expected FILE, sqlite:///FILE or postgresql://USER@HOST/DATABASE") from None
    kind = url.get_backend_name()
    if kind not in ("sqlite", "postgresql"):
        raise UsageError(f"ledger: expected sqlite or postgresql, found {printable(kind, 40)}")
    if kind == "sqlite" and url.database in (None, "", ":memory:"):
        raise UsageError("ledger: a database in memory keeps nothing: name a file, sqlite:///FILE")
    return url.set(drivername="sqlite" if kind == "sqlite" else "postgresql+psycopg")


def shown_url(url: sa.URL) -> str:
    """Return *url* fit for a message: a file's name, or the URL without its password."""
    if url.get_backend_name() == "sqlite":
        return printable(url.database)
    return printable(url.set(drivername="postgresql", query={}).render_as_string(hide_password=True))


def connect_engine(url: sa.URL, *, create: bool) -> sa.Engine:
    """Return an engine for the ledger; a SQLite file is made, mode 0600, if *create*.

    Raises:
        MissingExtraError: the driver is not installed.
        LedgerError: there is no such file, or it cannot be made.
    """
    if url.get_backend_name() == "postgresql":
        try:
            return sa.create_engine(url, hide_parameters=True, poolclass=sa.NullPool)
        except ImportError:
            raise MissingExtraError(
                "a ledger on PostgreSQL needs psycopg: pip install 'taggant[ledger-postgres]'"
            ) from None
    path = Path(str(url.database))
    try:
        if create:
            # Entries name accounts: the file is its owner's alone. SQLite gives its -wal and -shm the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        elif not path.is_file():
            raise LedgerError(f"{shown_url(url)}: no such ledger")
    except OSError as error:
        raise LedgerError(f"{shown_url(url)}: cannot open the ledger: {error.strerror}") from None
    engine = sa.create_engine(
        url, hide_parameters=True, poolclass=sa.NullPool, connect_args={"check_same_thread": False}
    )
    sa.event.listen(engine, "connect", _set_up_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def upgrade(engine: sa.Engine) -> None:
    """Make the tables, or bring those of an older version up to date, in one transaction.

    Raises:
        LedgerError: the database is of a newer version.
    """
    from alembic import command

    config = migration_config()
    with engine.connect().execution_options(taggant_writes=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
        found = _version(connection)
        if found == _head(config):
            return
        _refuse_newer(found, config, engine.url)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check_version(engine: sa.Engine) -> None:
    """Make sure that the tables are there and of this version.

    Raises:
        LedgerError: they are not.
    """
    config = migration_config()
    with engine.connect() as connection:
        found = _version(connection)
    _refuse_newer(found, config, engine.url)
    if found is None:
        raise LedgerError(f"{shown_url(engine.url)}: there is no ledger in this database")
    if found != _head(config):
        raise LedgerError(
            f"{shown_url(engine.url)}: the ledger is of an older version ({found}); opening it to write (a server, or "
            "`taggant ledger append`) brings it up to date"
        )


def migration_config() -> Config:
    """Return Alembic's configuration for the shipped migrations; `attributes["connection"]` is the caller's to set.

    Raises:
        MissingExtraError: alembic is not installed.
    """
    try:
        from alembic.config import Config
    except ImportError:
        raise MissingExtraError("the ledger needs alembic: pip install 'taggant[ledger]'") from None
    # A library prints nothing; and Alembic would, to what standard output was when it was first imported.
    config = Config(stdout=io.StringIO())
    # Alembic reads % as the beginning of an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _head(config: Config) -> str | None:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(config).get_current_head()


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
    return found


def _refuse_newer(found: str | None, config: Config, url: sa.URL) -> None:
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise LedgerError(
            f"{shown_url(url)}: the ledger is of a newer version ({printable(found, 40)}): upgrade taggant"
        )


def _set_up_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    # The driver begins no transaction of its own: `_begin_sqlite` does, and tables are made within one too.
    connection.isolation_level = None
    settings = (
        "journal_mode = WAL",
        "synchronous = FULL",
        f"wal_autocheckpoint = {_WAL_PAGES}",
        f"cache_size = {-_CACHE_KIB}",
    )
    for pragma in (f"busy_timeout = {_BUSY_TIMEOUT_MS}", *settings):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that will write takes the lock at once: one that began by reading could not wait for it later.
    writes = connection.get_execution_options().get("taggant_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
