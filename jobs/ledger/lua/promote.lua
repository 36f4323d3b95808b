-- Move jobs whose delay is over back to the queue. ARGV: largest number of jobs. Returns the ids to send.
local due = redis.call('ZRANGEBYSCORE', key('delayed'), '-inf', now, 'LIMIT', 0, tonumber(ARGV[3]))
for _, id in ipairs(due) do enqueue(id) end
return due
