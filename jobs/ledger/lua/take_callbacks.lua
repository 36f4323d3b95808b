-- Take callbacks that are due and hide them for a while, so that they are tried again should the sender die.
-- ARGV: largest number, microseconds to hide. Returns a list of {webhook id, job id, event, attempts}.
local taken = {}
for _, webhook in ipairs(redis.call('ZRANGEBYSCORE', key('outbox'), '-inf', now, 'LIMIT', 0, tonumber(ARGV[3]))) do
  redis.call('ZADD', key('outbox'), now + tonumber(ARGV[4]), webhook)
  local entry = redis.call('HMGET', key('callback', webhook), 'job', 'event', 'attempts')
  table.insert(taken, {webhook, entry[1], entry[2], entry[3]})
end
return taken
