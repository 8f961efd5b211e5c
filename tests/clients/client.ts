// Uses the types that openapi-typescript generates, with openapi-fetch: node client.js URL. test_clients.py runs it.

import assert from "node:assert/strict"
import createClient from "openapi-fetch"
import type {components, paths} from "./course_api.js"

type Json = "application/json" // of the media types that a response may have, the one this client asks for
type Course = components["schemas"]["Course"]
const baseUrl = process.argv[2]!

async function logIn(username: string, password: string) {
  const {data} = await createClient<paths, Json>({baseUrl}).POST("/token", {body: {username, password}})
  assert.ok(data && data.token_type === "Bearer" && data.expires_in === 200)
  return createClient<paths, Json>({baseUrl, headers: {Authorization: `Bearer ${data.access_token}`}})
}

/** Return every course, from pages of two, each reached by the link to the next. */
async function listAll(api: Awaited<ReturnType<typeof logIn>>, after = ""): Promise<Course[]> {
  const {data, response} = await api.GET("/courses", {params: {query: {sort: "code", limit: 2, after}}})
  assert.ok(data)
  const next = response.headers.get("Link")?.match(/<([^>]+)>; rel="next"/)?.[1]
  const cursor = next && new URL(next, baseUrl).searchParams.get("after")
  return cursor ? [...data.courses, ...await listAll(api, cursor)] : data.courses
}

const editor = await logIn("faisal", "faisal")

// Create: the response is empty, or the course; a code that exists is refused.
const body = {code: "AAS 100", name: "Intro Asian American Studies", instructor: "Geng, Zhe"}
const prefer = {header: {Prefer: "return=representation"}}
const created = await editor.POST("/courses", {body, params: prefer})
assert.equal(created.response.status, 201)
assert.ok(created.data && typeof created.data === "object" && "code" in created.data && created.data.code === "AAS 100")
const empty = await editor.POST("/courses", {body: {...body, code: "6.006"}})
assert.deepEqual([empty.response.status, empty.data], [201, undefined])
const taken = await editor.POST("/courses", {body})
assert.equal(taken.response.status, 409)
assert.match(taken.error!.error, /AAS 100/)

// Upload: JSON, then CSV as an update; a bad row is named.
const rows = [{...body, code: "MATH&151"}, {...body, code: "MATH&152"}]
assert.deepEqual((await editor.POST("/courses", {body: rows})).data, {created: 2})
const csv = await editor.POST("/courses", {
  params: {query: {update: true}},
  body: "code,name,instructor\nMATH&151,Calculus I,\nMATH&153,Calculus III,\n",
  bodySerializer: text => text,
  headers: {"Content-Type": "text/csv"},
})
assert.deepEqual(csv.data, {created: 1, updated: 1})
const refused = await editor.POST("/courses", {body: [{...body, name: ""}]})
assert.ok(refused.error && "rows" in refused.error && refused.error.rows?.[0]?.row === 1)

// List, page by page.
const codes = (await listAll(editor)).map(course => course.code)
assert.deepEqual(codes, ["6.006", "AAS 100", "CSE115", "CSE465", "MATH&151", "MATH&152", "MATH&153"])
const found = await editor.GET("/courses", {params: {query: {prefix: "CSE"}}})
assert.equal(found.data?.courses.length, 2)

// Change a course only if nobody else has.
const path = {code: "AAS 100"}
const read = await editor.GET("/courses/{code}", {params: {path}})
assert.equal(read.data?.instructor, "Geng, Zhe")
const header = {"If-Match": read.response.headers.get("ETag")!}
const change = {instructor: "Sawada, Emilia R"}
const written = await editor.PATCH("/courses/{code}", {
  params: {path, header: {...header, ...prefer.header}},
  body: change,
})
assert.equal(written.data?.instructor, "Sawada, Emilia R")
const stale = await editor.PATCH("/courses/{code}", {params: {path, header}, body: change})
assert.equal(stale.response.status, 412)
const fresh = {"If-Match": written.response.headers.get("ETag")!}
assert.equal((await editor.DELETE("/courses/{code}", {params: {path, header: fresh}})).response.status, 204)

// Errors have types as well.
const stranger = createClient<paths, Json>({baseUrl, headers: {Authorization: "Bearer not.a.token"}})
const unauthorized = await stranger.GET("/courses")
assert.equal(unauthorized.response.status, 401)
assert.ok(unauthorized.error && "reason" in unauthorized.error && unauthorized.error.error === "Invalid token")
const reader = await logIn("reader", "reads-only")
const forbidden = await reader.PATCH("/courses/{code}", {params: {path: {code: "CSE115"}}, body: change})
assert.equal(forbidden.response.status, 403)
for (const status of [400, 400, 429]) {
  const failed = await createClient<paths, Json>({baseUrl}).POST("/token", {body: {username: "grace", password: "wrong"}})
  assert.equal(failed.response.status, status)
  assert.ok(failed.error?.error)
  assert.equal(failed.response.headers.has("Retry-After"), status === 429)
}
