"""Fixtures: the app on a database of its own, clients with and without a token, and the API as a real process."""

import contextlib
import functools
import pathlib
import shutil

import argon2
import pytest

pytest.register_assert_rewrite("catalogue", "description", "processes")
from catalogue import CSE115, CSE465, LOGIN, make_token  # noqa: E402
from description import Client  # noqa: E402
from processes import FOLDER, SQLITE, Server, run_program  # noqa: E402

import database  # noqa: E402
import models  # noqa: E402
import settings  # noqa: E402

database.init_db()

import course_api  # noqa: E402


def pytest_collection_modifyitems(config, items):
    """Leave out tests that need only SQLite when another database is tested."""
    if not SQLITE:
        left_out = [item for item in items if item.get_closest_marker("sqlite")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("sqlite")]


# -- The app in this process -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def dummy_user():
    models.User.create_user(**LOGIN)
    yield models.User.get()
    database.db.close()
    FOLDER.cleanup()


@pytest.fixture
def app(dummy_user):
    settings.LIMIT_STORAGE.reset()
    models.ApiKey.delete().execute()
    dummy_user.save()  # as it was, should a test have changed the role or the password
    models.User.delete().where(models.User.username != LOGIN["username"]).execute()
    models.Course.delete().execute()
    for row in (CSE115, CSE465):
        models.Course.add_course(**row)
    return course_api.app


@pytest.fixture
def cheap_hashes(monkeypatch):
    """Hash passwords in no time; test_models.py and the processes do it as the API does."""
    hasher = argon2.PasswordHasher(memory_cost=8, time_cost=1, parallelism=1)
    monkeypatch.setattr(models, "HASHER", hasher)
    models.unknown_user_hash.cache_clear()


@pytest.fixture
def stranger(app, cheap_hashes):
    """A client without a token."""
    return Client(app)


@pytest.fixture
def client(app, cheap_hashes):
    """A client with a token, as a bearer header."""
    client = Client(app)
    client.authorization = ("Bearer", make_token("faisal"))
    return client


# -- The programs in processes of their own ----------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path):
    """A function that starts the API as a real process, stopped when the test ends."""
    with contextlib.ExitStack() as servers:

        def start(*arguments, **settings):
            server = Server(tmp_path, *arguments, **settings)
            servers.callback(server.close)
            return server

        yield start


@pytest.fixture
def run(tmp_path):
    """A function that runs one of the programs to its end, in the folder that `start` uses."""
    return functools.partial(run_program, tmp_path)


@pytest.fixture
def serve(run, start):
    """A function that runs seed.py, and starts the API, with the same settings; returns it, and a token's header."""

    def serve(**settings):
        assert run("seed.py", **settings).returncode == 0
        api = start(**settings)
        return api, api.bearer()

    return serve


@pytest.fixture(scope="session")
def seeded_file(tmp_path_factory):
    """A SQLite file that has the dummy data."""
    file = tmp_path_factory.mktemp("seeded") / "courses.db"
    assert run_program(file.parent, "seed.py", DATABASE_URL=f"sqlite:///{file}").returncode == 0
    return file


@pytest.fixture
def seeded(seeded_file, tmp_path):
    """The file of the SQLite database that `start` and `run` use, with the dummy data, as seed.py leaves it."""
    return pathlib.Path(shutil.copy(seeded_file, tmp_path))
