"""PostgreSQL and MariaDB compare and sort texts by their characters' numbers, as SQLite does."""

from peewee import MySQLDatabase
from playhouse.migrate import CockroachDBMigrator, PostgresqlMigrator

LENGTHS = {("courses", "code"): 20, ("courses", "name"): 120, ("courses", "instructor"): 120, ("users", "username"): 80}


def up(migrator, db):
    for (table, column), length in LENGTHS.items():
        if isinstance(db, MySQLDatabase):
            kind = f"VARCHAR({length}) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL"
            migrator.migrate(migrator.sql(f"ALTER TABLE {table} MODIFY {column} {kind}"))
        elif isinstance(migrator, PostgresqlMigrator) and not isinstance(migrator, CockroachDBMigrator):
            migrator.migrate(migrator.sql(f'ALTER TABLE {table} ALTER {column} TYPE VARCHAR({length}) COLLATE "C"'))
