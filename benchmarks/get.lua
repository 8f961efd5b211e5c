-- wrk: each request asks for a course at random, out of COURSES.
local courses = tonumber(os.getenv("COURSES"))
request = function()
  return wrk.format("GET", "/courses/C" .. math.random(0, courses - 1))
end
