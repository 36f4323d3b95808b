-- Note how an attempt at a callback went. ARGV: webhook id, 'delivered' | 'pending' | 'dropped', delay until the next
-- attempt in microseconds, what the receiver said.
local webhook, verdict, delay_us, said = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local entry = key('callback', webhook)
local id = redis.call('HGET', entry, 'job')
if not id then
  redis.call('ZREM', key('outbox'), webhook)
  return
end
redis.call('HINCRBY', entry, 'attempts', 1)
redis.call('HSET', entry, 'said', said, 'tried_at', now)
if redis.call('EXISTS', key('job', id)) == 1 then
  redis.call('HSET', key('job', id), 'callback', verdict)
end
if verdict == 'pending' then
  redis.call('ZADD', key('outbox'), now + delay_us, webhook)
else
  redis.call('ZREM', key('outbox'), webhook)
  redis.call('PEXPIRE', entry, math.floor(retention_us / 1000))
end
