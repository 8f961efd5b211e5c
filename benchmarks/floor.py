"""The floor: the same bytes for every request, on waitress with its defaults."""

import logging
import os

from waitress import serve

COURSE = b'{"id":1,"code":"C0","name":"Introduction to subject 0","instructor":"Instructor 0"}'


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(COURSE)))])
    return [COURSE]


logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # as in course_api.py
serve(app, host="127.0.0.1", port=int(os.environ["PORT"]))
