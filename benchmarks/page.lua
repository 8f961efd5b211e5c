-- wrk: each request asks for a page of 50 at random, out of COURSES.
local pages = tonumber(os.getenv("COURSES")) / 50
request = function()
  return wrk.format("GET", "/courses?limit=50&offset=" .. 50 * math.random(0, pages - 1))
end
