"""The tutorial's stack, with its bugs fixed: Flask, Flask-SQLAlchemy and PyJWT, on waitress."""

import functools
import logging
import os

import jwt
from flask import Flask, abort, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from waitress import serve

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
db = SQLAlchemy(app)


class Course(db.Model):
    __tablename__ = "courses"
    id = db.Column(db.Integer, primary_key=True)
    code = db.Column(db.String(20), unique=True, nullable=False)
    name = db.Column(db.String(120), nullable=False)
    instructor = db.Column(db.String(120), nullable=False)

    def json(self):
        return {"id": self.id, "code": self.code, "name": self.name, "instructor": self.instructor}


with app.app_context():

    @event.listens_for(db.engine, "connect")
    def be_durable(connection, _record):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")


def token_required(view):
    @functools.wraps(view)
    def wrapper(*args, **kwargs):
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            jwt.decode(token, os.environ["SECRET_KEY"], algorithms=["HS256"])
        except jwt.InvalidTokenError:
            abort(401)
        return view(*args, **kwargs)

    return wrapper


@app.get("/courses")
@token_required
def get_courses():
    limit, offset = request.args.get("limit", type=int), request.args.get("offset", type=int)
    headers = {"X-Total-Count": db.session.scalar(db.select(db.func.count()).select_from(Course))} if limit else {}
    courses = db.session.scalars(db.select(Course).order_by(Course.id).limit(limit).offset(offset))
    return jsonify({"courses": [course.json() for course in courses]}), headers


@app.get("/courses/<code>")
@token_required
def get_course(code):
    return jsonify(Course.query.filter_by(code=code).first_or_404().json())


@app.post("/courses")
@token_required
def add_course():
    body = request.get_json()
    db.session.add(Course(code=body["code"], name=body["name"], instructor=body["instructor"]))
    db.session.commit()
    return "", 201, {"Location": f"/courses/{body['code']}"}


logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # as in course_api.py
serve(app, host="127.0.0.1", port=int(os.environ["PORT"]))
