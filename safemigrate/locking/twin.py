"""A second connection to the same database, of which Django and the project know nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from django.db import Error, OperationalError

from safemigrate import driver

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

LONGEST_ATTEMPT = 10
# libpq takes anything less for two seconds, and nothing that is no integer of C.
SHORTEST_ATTEMPT = 2
LONGEST_CONNECTING = 1_000_000
# Options that are about the driver's objects, and not about how to reach the server.
NOT_FOR_A_TWIN = (
    "connection_factory",
    "cursor_factory",
    "isolation_level",
    "pool",
    "row_factory",
    "server_side_binding",
)


def twin(connection: BaseDatabaseWrapper) -> BaseDatabaseWrapper:
    """Return an unconnected copy of the alias, outside Django's registry and pool."""
    copy: BaseDatabaseWrapper = connection.copy()
    for name in NOT_FOR_A_TWIN:
        copy.settings_dict["OPTIONS"].pop(name, None)
    copy.settings_dict["AUTOCOMMIT"] = True
    return copy


def dial(wrapper: BaseDatabaseWrapper, *, patience: float | None = None) -> Any:
    """Connect, and nothing more: no ``connection_created``, no time zone, no role, no statement.

    If a firewall drops packets, an attempt without ``patience`` takes minutes.
    """
    if patience is not None:
        options = wrapper.settings_dict["OPTIONS"]
        seconds = min(max(math.ceil(patience), SHORTEST_ATTEMPT), LONGEST_CONNECTING)
        options["connect_timeout"] = min(int(options.get("connect_timeout") or seconds), seconds)
    with wrapper.wrap_database_errors:
        wrapper.connection = wrapper.get_new_connection(wrapper.get_connection_params())
    return wrapper.connection


def knock(probe: BaseDatabaseWrapper, patience: float) -> None:
    """Connect, and send one statement: a pooler accepts connections while its server is down."""
    if probe.vendor != "postgresql":
        dial(probe)
        probe.close()
        return
    dial(probe, patience=min(patience, LONGEST_ATTEMPT))
    try:
        with driver.deadline(probe, max(patience, SHORTEST_ATTEMPT)), driver.cursor(probe) as ours:
            ours.execute("SELECT 1")
    except Error as error:
        raise OperationalError(*error.args) from error
    finally:
        probe.close()
