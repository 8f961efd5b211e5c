-- wrk: each request has a number of its own in place of the path's %d, at random below COURSES.
local path, courses = wrk.path, tonumber(os.getenv("COURSES"))
request = function()
  return wrk.format("GET", path:format(math.random(0, courses - 1)))
end
