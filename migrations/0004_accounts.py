"""Tokens end with their user's password, by a stamp; users have keys for scripts, which end with them.

Copies of 2.0.0 add users without a stamp: such a user gets one at the first login.
"""

import secrets

from peewee import MySQLDatabase, PostgresqlDatabase


def up(_migrator, db):
    if_new, text, number = "", "", "INTEGER"  # of SQLite, which undoes a step that fails
    if isinstance(db, PostgresqlDatabase):
        if_new, text, number = "IF NOT EXISTS", 'COLLATE "C"', "BIGSERIAL"
    elif isinstance(db, MySQLDatabase):
        if_new, number = "IF NOT EXISTS", "BIGINT AUTO_INCREMENT"
        text = "CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"
    db.execute_sql(f"ALTER TABLE users ADD COLUMN {if_new} stamp VARCHAR(32) {text} NOT NULL DEFAULT ''")
    update = f"UPDATE users SET stamp = {db.param} WHERE id = {db.param}"
    for (user,) in db.execute_sql("SELECT id FROM users").fetchall():
        db.execute_sql(update, (secrets.token_hex(16), user))
    db.execute_sql("DROP TABLE IF EXISTS api_keys")  # of a later state, to which an older backup was restored
    db.execute_sql(f"""CREATE TABLE api_keys (
        id {number} PRIMARY KEY,
        hash VARCHAR(64) {text} NOT NULL UNIQUE,
        user_id INTEGER NOT NULL,
        label VARCHAR(80) {text} NOT NULL,
        read_only BOOLEAN NOT NULL DEFAULT FALSE,
        created BIGINT NOT NULL,
        expires BIGINT,
        UNIQUE (user_id, label),
        FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE)""")
