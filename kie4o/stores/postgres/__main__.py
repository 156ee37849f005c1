"""Print the SQL of the tables and functions: `python -m kie4o.stores.postgres [SCHEMA]`."""

from __future__ import annotations

import sys

from .address import SCHEMA, address_of
from .schema import script

_GRANTS = """
-- For a role that uses them, and may not create anything:
-- GRANT USAGE ON SCHEMA {schema} TO ROLE;
-- GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO ROLE;
"""


def main(name: str = SCHEMA) -> None:
    schema = address_of(f"postgresql:///?schema={name}").schema
    sys.stdout.write(script(schema) + _GRANTS.format(schema=schema))


if __name__ == "__main__":
    main(*sys.argv[1:2])
