"""What the servers need beside SQLite: texts compared and sorted by their characters' numbers, and 64 bits for an id.

PostgreSQL takes a new id for each refused INSERT too, and for each course that an import with --update changes.
"""

from peewee import MySQLDatabase
from playhouse.migrate import CockroachDBMigrator, PostgresqlMigrator

POSTGRESQL = [
    """ALTER TABLE courses
        ALTER id TYPE BIGINT,
        ALTER code TYPE VARCHAR(20) COLLATE "C",
        ALTER name TYPE VARCHAR(120) COLLATE "C",
        ALTER instructor TYPE VARCHAR(120) COLLATE "C" """,
    "ALTER SEQUENCE courses_id_seq AS BIGINT",
    'ALTER TABLE users ALTER username TYPE VARCHAR(80) COLLATE "C"',
]
MARIADB = [
    """ALTER TABLE courses
        MODIFY id BIGINT NOT NULL AUTO_INCREMENT,
        MODIFY code VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL,
        MODIFY name VARCHAR(120) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL,
        MODIFY instructor VARCHAR(120) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL""",
    "ALTER TABLE users MODIFY username VARCHAR(80) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL",
]


def up(migrator, db):
    is_postgresql = isinstance(migrator, PostgresqlMigrator) and not isinstance(migrator, CockroachDBMigrator)
    for sql in POSTGRESQL if is_postgresql else MARIADB if isinstance(db, MySQLDatabase) else []:
        migrator.migrate(migrator.sql(sql))
