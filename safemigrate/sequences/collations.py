"""Unique indexes that were sorted by another version of their collation than the server has.

After an upgrade of the operating system, or a copy of the files to another one, such an index may
not find the row that is there: then a duplicate gets in. See "Collation Versions" in PostgreSQL's
documentation of ALTER DATABASE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .needs import WANTED, Loss

if TYPE_CHECKING:
    from safemigrate.driver import Cursor

MISMATCHES = f"""
WITH {WANTED}
SELECT DISTINCT ON (w.place, n.nspname)
       n.nspname AS schema, c.relname AS table_name, a.attname AS column_name,
       x.relname AS index, v.recorded, v.actual, v.whose, v.refresh,
       pg_catalog.format('REINDEX DATABASE CONCURRENTLY %%I;', d.datname) AS reindex
FROM wanted AS w
JOIN pg_catalog.pg_class AS c ON c.oid = w.oid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_index AS i ON i.indrelid = c.oid AND i.indisunique
JOIN pg_catalog.pg_class AS x ON x.oid = i.indexrelid
CROSS JOIN LATERAL ROWS FROM (
    pg_catalog.unnest(i.indkey::pg_catalog.int2[]),
    pg_catalog.unnest(i.indcollation::pg_catalog.oid[])
) AS k (attribute, oid)
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.attribute
JOIN pg_catalog.pg_collation AS l ON l.oid = k.oid
JOIN pg_catalog.pg_namespace AS ln ON ln.oid = l.collnamespace
JOIN pg_catalog.pg_database AS d ON d.datname = pg_catalog.current_database()
CROSS JOIN LATERAL (
    SELECT 'the database''s collation' AS whose,
           pg_catalog.to_jsonb(d) ->> 'datcollversion' AS recorded,
           {{actual}} AS actual,
           pg_catalog.format('ALTER DATABASE %%I REFRESH COLLATION VERSION;', d.datname) AS refresh
    WHERE l.collprovider = 'd'
    UNION ALL
    SELECT pg_catalog.format('collation %%I', l.collname),
           l.collversion,
           pg_catalog.pg_collation_actual_version(l.oid),
           pg_catalog.format(
               'ALTER COLLATION %%I.%%I REFRESH VERSION;', ln.nspname, l.collname)
    WHERE l.collprovider <> 'd'
) AS v
WHERE v.recorded <> v.actual
ORDER BY w.place, n.nspname, x.relname
"""
# Until PostgreSQL 15 no version was recorded for the database's own collation.
VERSIONED_DATABASES = 150000
OF_DATABASE = "pg_catalog.pg_database_collation_actual_version(d.oid)"


def mismatches(cursor: Cursor, parameters: dict[str, Any], server_version: int) -> list[Loss]:
    """List those of the tables that have such an index; the parameters are those of ``WANTED``.

    ``server_version`` is a number such as 150004.
    """
    actual = OF_DATABASE if server_version >= VERSIONED_DATABASES else "NULL"
    return [
        Loss(
            row.schema,
            row.table_name,
            row.column_name,
            "collation mismatch",
            f"its unique index {row.index} was sorted by version {row.recorded} of "
            f"{row.whose}, and the server has {row.actual}: duplicates may get in",
            (row.reindex, row.refresh),
        )
        for row in cursor.rows(MISMATCHES.format(actual=actual), parameters)
    ]
