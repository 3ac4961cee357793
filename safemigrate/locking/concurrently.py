"""What is read of a statement's text before it waits for a lock; a misreading costs time only.

DDL that is CONCURRENT waits for transactions to end, and lets reads and writes pass meanwhile.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from safemigrate import driver
from safemigrate.printing import sql_name
from safemigrate.sqltext import GAP, NAME, verb_of_one_statement

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

# They may have committed a part of what they do.
MAY_COMMIT = frozenset("abort begin call commit do end prepare reindex rollback start".split())

# Compiled when they are needed: most runs need none of them.
CREATE_INDEX = rf"""(?xi)
    {GAP}*CREATE{GAP}+(?:UNIQUE{GAP}+)?INDEX{GAP}+CONCURRENTLY{GAP}+(?:IF{GAP}+NOT{GAP}+EXISTS{GAP}+)?
    (?P<name>{NAME}){GAP}+ON{GAP}+(?:ONLY{GAP}+)?(?P<table>{NAME}(?:\s*\.\s*{NAME}){{0,2}})
    (?={GAP}*(?:\(|USING\b))"""
QUEUES_NOBODY = r"""(?xi)
    \s*(?: (?:CREATE\s+(?:UNIQUE\s+)?INDEX | DROP\s+INDEX) \s+CONCURRENTLY\b
        | REINDEX\s[^;]*\bCONCURRENTLY\b
        | ALTER\s+TABLE\s[^,;]+\sDETACH\s+PARTITION\s[^,;]+\sCONCURRENTLY;?\s*$
        | ALTER\s+TABLE\s[^,;]+\sVALIDATE\s+CONSTRAINT\s[^,;]+;?\s*$ )"""
CONCURRENTLY = r"(?i)\bconcurrently\b"
NOWAIT = r"(?i)\bnowait\b"

INVALID_INDEXES = """
SELECT pg_catalog.format('%%I.%%I', space.nspname, class.relname) AS quoted,
       space.nspname::pg_catalog.text AS schema, class.relname::pg_catalog.text AS name
  FROM pg_catalog.pg_index AS index
  JOIN pg_catalog.pg_class AS class
    ON class.oid OPERATOR(pg_catalog.=) index.indexrelid
  JOIN pg_catalog.pg_namespace AS space
    ON space.oid OPERATOR(pg_catalog.=) class.relnamespace
 WHERE index.indrelid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%s)::pg_catalog.oid
   AND class.relname OPERATOR(pg_catalog.=) (pg_catalog.parse_ident(%s))[1]::pg_catalog.name
   AND NOT index.indisvalid
"""


def queues_nobody(text: str) -> bool:
    """Tell whether nobody has to queue behind the statement while it waits."""
    return re.match(QUEUES_NOBODY, text) is not None


def can_be_repeated(text: str) -> bool:
    """Tell whether the text is one statement that has done nothing when it fails, in autocommit.

    CREATE INDEX CONCURRENTLY has, and is repeated once that is dropped.
    """
    verb = verb_of_one_statement(text)
    if not verb or verb in MAY_COMMIT:
        return False
    if verb in ("alter", "create") and re.search(CONCURRENTLY, text):
        return re.match(CREATE_INDEX, text) is not None
    return True


def does_not_wait(text: str) -> bool:
    """Tell whether the statement itself asks for an error where it would have to wait."""
    return re.search(NOWAIT, text) is not None


def invalid_indexes(connection: BaseDatabaseWrapper, text: str) -> set[str]:
    """Name the INVALID index that is called as the one that the text creates CONCURRENTLY."""
    found = re.match(CREATE_INDEX, text)
    if found is None:
        return set()
    with driver.cursor(connection) as cursor:
        rows = cursor.rows(INVALID_INDEXES, [found["table"], found["name"]])
    return {sql_name(row.quoted, row.schema, row.name) for row in rows}
