// The same API on Fastify and better-sqlite3, with prepared statements and response schemas as their documentation teaches.
import Fastify from "fastify";
import jwt from "@fastify/jwt";
import Database from "better-sqlite3";

const db = new Database(process.env.DATABASE_URL.replace("sqlite:///", ""));
db.pragma("journal_mode = WAL");
db.pragma("synchronous = FULL");
const page = db.prepare("SELECT id, code, name, instructor FROM courses ORDER BY id LIMIT ? OFFSET ?");
const count = db.prepare("SELECT count(*) FROM courses").pluck();
const one = db.prepare("SELECT id, code, name, instructor FROM courses WHERE code = ?");
const add = db.prepare("INSERT INTO courses (code, name, instructor) VALUES (?, ?, ?)");

const text = { type: "string" };
const course = { type: "object", properties: { id: { type: "integer" }, code: text, name: text, instructor: text } };
const courses = { type: "object", properties: { courses: { type: "array", items: course } } };
const part = {
  type: "object",
  properties: { limit: { type: "integer", default: -1 }, offset: { type: "integer", default: 0 } }, // -1: all
};
const newCourse = {
  type: "object",
  required: ["code", "name", "instructor"],
  properties: { code: { ...text, maxLength: 20 }, name: { ...text, maxLength: 120 }, instructor: { ...text, maxLength: 120 } },
};

const app = Fastify();
await app.register(jwt, { secret: process.env.SECRET_KEY });
app.addHook("onRequest", (request) => request.jwtVerify());

app.get("/courses", { schema: { querystring: part, response: { 200: courses } } }, (request, reply) => {
  const { limit, offset } = request.query;
  if (limit > 0) reply.header("X-Total-Count", count.get());
  return { courses: page.all(limit, offset) };
});
app.get("/courses/:code", { schema: { response: { 200: course } } }, (request, reply) =>
  one.get(request.params.code) ?? reply.code(404).send({ error: "Course code is not found in the courses" }));
app.post("/courses", { schema: { body: newCourse } }, (request, reply) => {
  const { code, name, instructor } = request.body;
  add.run(code, name, instructor);
  reply.code(201).header("Location", `/courses/${encodeURIComponent(code)}`).send();
});

await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT) });
