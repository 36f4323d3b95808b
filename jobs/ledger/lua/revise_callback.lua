-- Change a callback's fate by hand. ARGV: webhook id, 'pending' (try now, with all attempts ahead) or 'dropped'.
-- Returns its state before; false when it is unknown.
local webhook, state = ARGV[3], ARGV[4]
local entry = key('callback', webhook)
local id, before, event = unpack(redis.call('HMGET', entry, 'job', 'state', 'event'))
if not id then return false end
if state == 'dropped' and before ~= 'pending' then return before end
if state == 'dropped' and NEWS[event] then
  forget_callback(webhook)
  return before
end
if state == 'pending' then redis.call('HSET', entry, 'attempts', 0) end
set_callback(webhook, state, now)
return before
