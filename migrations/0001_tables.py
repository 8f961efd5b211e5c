"""The tables of the first release; those that are there already stay as they are."""

from peewee import CharField, Model


def up(_migrator, db):
    class Course(Model):
        code = CharField(20, unique=True)
        name = CharField(120)
        instructor = CharField(120)

        class Meta:
            database, table_name = db, "courses"

    class User(Model):
        username = CharField(80, unique=True)
        password = CharField(255)

        class Meta:
            database, table_name = db, "users"

    class SigningKey(Model):
        value = CharField(64)

        class Meta:
            database, table_name = db, "signing_key"

    db.create_tables([Course, User, SigningKey])
