"""Uses the client that openapi-python-client generates, with types: python client.py URL. test_clients.py runs it."""

import sys
from urllib.parse import parse_qs, urlsplit

import httpx
from course_api_client import AuthenticatedClient, Client
from course_api_client.api.courses import add_courses, change_course, delete_course, get_course, list_courses
from course_api_client.api.login import get_token
from course_api_client.models import (
    AccessToken,
    Course,
    CourseChange,
    CourseList,
    Error,
    ListCoursesSort,
    Login,
    NewCourse,
    TokenError,
    Upload,
    UploadError,
)

URL = sys.argv[1]


def log_in(username: str, password: str) -> AuthenticatedClient:
    token = get_token.sync(client=Client(URL), body=Login(username, password))
    assert isinstance(token, AccessToken) and token.token_type == "Bearer" and token.expires_in == 200
    return AuthenticatedClient(URL, token=token.access_token)


def list_all(client: AuthenticatedClient) -> list[Course]:
    """Return every course, from pages of two, each reached by the link to the next."""
    courses, after = [], ""
    while True:
        page = list_courses.sync_detailed(client=client, sort=ListCoursesSort.CODE, limit=2, after=after)
        assert isinstance(page.parsed, CourseList)
        courses += page.parsed.courses
        links = httpx.Response(200, headers=page.headers).links
        if "next" not in links:
            return courses
        after = parse_qs(urlsplit(links["next"]["url"]).query)["after"][0]


editor = log_in("faisal", "faisal")

# Create: the response is empty, or the course; a code that exists is refused.
new = NewCourse(code="AAS 100", name="Intro Asian American Studies", instructor="Geng, Zhe")
assert add_courses.sync_detailed(client=editor, body=new).status_code == 201
created = add_courses.sync_detailed(
    client=editor, body=NewCourse("6.006", "Algorithms", ""), prefer="return=representation"
)
assert (created.status_code, created.headers["Preference-Applied"]) == (201, "return=representation")
taken = add_courses.sync_detailed(client=editor, body=new)
assert taken.status_code == 409 and isinstance(taken.parsed, UploadError) and "AAS 100" in taken.parsed.error

# Upload: many at once, and again as an update; a bad row is named.
rows = [NewCourse("MATH&151", "Calculus I", ""), NewCourse("MATH&152", "Calculus II", "")]
assert add_courses.sync_detailed(client=editor, body=rows).status_code == 201
rows = [NewCourse("MATH&151", "Calculus 1", ""), NewCourse("MATH&153", "Calculus III", "")]
counts = add_courses.sync(client=editor, body=rows, update=True)
assert isinstance(counts, Upload) and (counts.created, counts.updated) == (1, 1)
refused = add_courses.sync(client=editor, body=[NewCourse("A", "", "")])
assert isinstance(refused, UploadError) and refused.rows and refused.rows[0].row == 1

# List, page by page.
codes = [course.code for course in list_all(editor)]
assert codes == ["6.006", "AAS 100", "CSE115", "CSE465", "MATH&151", "MATH&152", "MATH&153"]
found = list_courses.sync(client=editor, prefix="CSE")
assert isinstance(found, CourseList) and len(found.courses) == 2

# Change a course only if nobody else has.
read = get_course.sync_detailed("AAS 100", client=editor)
assert isinstance(read.parsed, Course) and read.parsed.instructor == "Geng, Zhe"
change = CourseChange(instructor="Sawada, Emilia R")
written = change_course.sync_detailed(
    "AAS 100", client=editor, body=change, if_match=read.headers["ETag"], prefer="return=representation"
)
assert isinstance(written.parsed, Course) and written.parsed.instructor == "Sawada, Emilia R"
stale = change_course.sync_detailed("AAS 100", client=editor, body=change, if_match=read.headers["ETag"])
assert stale.status_code == 412 and isinstance(stale.parsed, Error)
deleted = delete_course.sync_detailed("AAS 100", client=editor, if_match=written.headers["ETag"])
assert deleted.status_code == 204

# Errors have types as well.
stranger = AuthenticatedClient(URL, token="not.a.token")
unauthorized = list_courses.sync(client=stranger)
assert isinstance(unauthorized, TokenError) and unauthorized.error == "Invalid token"
forbidden = change_course.sync_detailed("CSE115", client=log_in("reader", "reads-only"), body=change)
assert forbidden.status_code == 403 and isinstance(forbidden.parsed, Error)
for _ in range(3):
    failed = get_token.sync_detailed(client=Client(URL), body=Login("grace", "wrong"))
assert failed.status_code == 429 and isinstance(failed.parsed, Error) and int(failed.headers["Retry-After"]) > 0
