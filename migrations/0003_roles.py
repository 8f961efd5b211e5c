"""Users may be read-only. In a tutorial's database, plain-text passwords are hashed, and user names trimmed and
put in NFC.
"""

import argon2
from peewee import MySQLDatabase, SqliteDatabase

import models
from fields import to_nfc

COLUMN = "read_only BOOLEAN NOT NULL DEFAULT FALSE"  # the default lets copies of the release before add users
SQLITE = [f"ALTER TABLE users ADD COLUMN {COLUMN}", "PRAGMA secure_delete = ON"]  # overwrites the old passwords
POSTGRESQL = [
    f"ALTER TABLE users ADD COLUMN IF NOT EXISTS {COLUMN}",
    "ALTER TABLE users ALTER password TYPE VARCHAR(255)",
]
MARIADB = [
    f"ALTER TABLE users ADD COLUMN IF NOT EXISTS {COLUMN}",
    "ALTER TABLE users MODIFY password VARCHAR(255) NOT NULL",
]


def is_hash(password):
    try:
        return bool(argon2.extract_parameters(password))
    except argon2.exceptions.InvalidHashError:
        return False


def up(_migrator, db):
    servers = MARIADB if isinstance(db, MySQLDatabase) else POSTGRESQL
    for sql in SQLITE if isinstance(db, SqliteDatabase) else servers:
        db.execute_sql(sql)
    users = db.execute_sql("SELECT id, username, password FROM users").fetchall()
    names = {username for _, username, _ in users} | {""}
    update = f"UPDATE users SET username = {db.param}, password = {db.param} WHERE id = {db.param}"
    for number, username, password in users:
        hashed = password if is_hash(password) else models.HASHER.hash(to_nfc(password, models.User.password.maximum))
        normal = to_nfc(username.strip(), models.User.username.maximum)
        trimmed = username if normal in names else normal
        names.add(trimmed)
        if (trimmed, hashed) != (username, password):
            db.execute_sql(update, (trimmed, hashed, number))
