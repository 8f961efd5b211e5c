-- wrk: adds a new course with each request. RUN is a prefix that no other run has.
local number, run = 0, os.getenv("RUN")
wrk.headers["Content-Type"] = "application/json"
request = function()
  number = number + 1
  local body = string.format('{"code": "%s-%d", "name": "Introduction", "instructor": "Ada Lovelace"}', run, number)
  return wrk.format("POST", nil, nil, body)
end
