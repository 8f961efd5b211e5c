-- wrk: replaces %d in the path with a random number below COURSES, in each request.
local path, courses = wrk.path, tonumber(os.getenv("COURSES"))
request = function()
  return wrk.format("GET", path:format(math.random(0, courses - 1)))
end
