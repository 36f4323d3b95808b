-- Compare what waits with the messages in the queue. ARGV: number of messages, microseconds for which they may be too few (a
-- message may be on its way from or to the queue), largest number to send. Returns ids to send messages for: as many as were
-- missing during all of that time.
local messages, grace_us, limit = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local missing = redis.call('ZCARD', key('queued')) - messages
local noted = key('missing')
if missing <= 0 then
  redis.call('DEL', noted)
  return {}
end
local seen = redis.call('HMGET', noted, 'since', 'least')
local since, least = tonumber(seen[1]) or now, math.min(tonumber(seen[2]) or missing, missing)
if now - since < grace_us then  -- also after the clock was set back: the time then begins anew with the next lull
  redis.call('HSET', noted, 'since', math.min(since, now), 'least', least)
  redis.call('PEXPIRE', noted, math.floor(retention_us / 1000))
  return {}
end
redis.call('DEL', noted)
return redis.call('ZRANGE', key('queued'), 0, math.min(least, limit) - 1)
