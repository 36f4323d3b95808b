-- Move jobs whose delay is over back to the queue. ARGV: largest number of jobs. Returns the ids to send.
-- A job whose record is lost or damaged is forgotten.
local promoted = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('delayed'), '-inf', now, 'LIMIT', 0, tonumber(ARGV[3]))) do
  if has_type(key('job', id), 'hash') and field(id, 'state') == 'queued' then
    enqueue(id, false)
    table.insert(promoted, id)
  else
    redis.call('ZREM', key('delayed'), id)
  end
end
return promoted
