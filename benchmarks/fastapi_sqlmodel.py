"""The same API on FastAPI and SQLModel, as their documentation teaches, on uvicorn with uvloop and httptools."""

import os
from typing import Annotated

import jwt
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi.security import OAuth2PasswordBearer
from sqlalchemy import event
from sqlmodel import Field, Session, SQLModel, create_engine, func, select


class CourseBase(SQLModel):
    code: str = Field(max_length=20, unique=True)
    name: str = Field(max_length=120)
    instructor: str = Field(max_length=120)


class Course(CourseBase, table=True):
    __tablename__ = "courses"
    id: int | None = Field(default=None, primary_key=True)


class CourseRead(CourseBase):
    id: int


class CourseList(SQLModel):
    courses: list[CourseRead]


engine = create_engine(os.environ["DATABASE_URL"], connect_args={"check_same_thread": False})
app = FastAPI()


@event.listens_for(engine, "connect")
def be_durable(connection, _record):
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


def get_session():
    with Session(engine) as session:
        yield session


def get_user(token: Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="login"))]):
    try:
        return jwt.decode(token, os.environ["SECRET_KEY"], algorithms=["HS256"])["sub"]
    except jwt.InvalidTokenError:
        raise HTTPException(401) from None


SessionDep = Annotated[Session, Depends(get_session)]
UserDep = Annotated[str, Depends(get_user)]


@app.get("/courses", response_model=CourseList)
def get_courses(session: SessionDep, user: UserDep, response: Response, offset: int = 0, limit: int | None = None):
    if limit:
        response.headers["X-Total-Count"] = str(session.exec(select(func.count()).select_from(Course)).one())
    return {"courses": session.exec(select(Course).order_by(Course.id).offset(offset).limit(limit)).all()}


@app.get("/courses/{code}", response_model=CourseRead)
def get_course(code: str, session: SessionDep, user: UserDep):
    course = session.exec(select(Course).where(Course.code == code)).first()
    if course is None:
        raise HTTPException(404)
    return course


@app.post("/courses", status_code=201)
def add_course(course: CourseBase, session: SessionDep, user: UserDep):
    session.add(Course.model_validate(course))
    session.commit()
    return Response(status_code=201, headers={"Location": f"/courses/{course.code}"})


uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=False, log_level="warning")
