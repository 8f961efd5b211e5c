"""Serve the API without one of its parts, to measure what that part costs: python without.py "role look-up"."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import course_api
import models
import server
from database import db


def drop_look_up():
    models.match_writer = lambda by: ("TRUE", [])


def drop_quick_reads():
    course_api.is_quick = lambda method, path: False


def drop_group_commit():
    server.MAX_GROUP = 1


def drop_full_durability():
    db.pragma("synchronous", "normal", permanent=True)


{
    "role look-up": drop_look_up,
    "quick reads": drop_quick_reads,
    "group commit": drop_group_commit,
    "full durability": drop_full_durability,
}[sys.argv.pop()]()
course_api.main()
