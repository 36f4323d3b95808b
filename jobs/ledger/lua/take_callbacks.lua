-- Take callbacks that are due and hide them for a while, so that they are tried again should the sender die.
-- ARGV: largest number, microseconds to hide. Returns a list of {webhook id, job id, event, attempts}.
local taken = {}
for _, webhook in ipairs(redis.call('ZRANGEBYSCORE', key('outbox'), '-inf', now, 'LIMIT', 0, tonumber(ARGV[3]))) do
  local name = key('callback', webhook)
  local entry = has_type(name, 'hash') and redis.call('HMGET', name, 'job', 'event', 'attempts') or {}
  if entry[1] and entry[2] and entry[3] then
    redis.call('ZADD', key('outbox'), now + tonumber(ARGV[4]), webhook)
    table.insert(taken, {webhook, entry[1], entry[2], entry[3]})
  else
    redis.call('ZREM', key('outbox'), webhook) -- its entry is lost or damaged
  end
end
return taken
