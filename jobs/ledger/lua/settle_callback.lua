-- Record the result of an attempt at a callback. ARGV: webhook id, 'delivered' | 'pending' | 'dropped', delay until the next
-- attempt in microseconds, the receiver's answer.
local webhook, verdict, delay_us, said = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local entry = key('callback', webhook)
if not redis.call('HGET', entry, 'job') then
  redis.call('ZREM', key('outbox'), webhook)
  return
end
if NEWS[redis.call('HGET', entry, 'event')] then return forget_callback(webhook) end
-- It was dropped by hand, or delivered by another sender, during this attempt.
if verdict == 'pending' and redis.call('HGET', entry, 'state') ~= 'pending' then return end
redis.call('HINCRBY', entry, 'attempts', 1)
redis.call('HSET', entry, 'said', said, 'tried_at', now)
set_callback(webhook, verdict, now + delay_us)
