-- Keep a running job's lease and note its progress. ARGV: id, token, lease in microseconds, progress ('' keeps it).
-- Returns 'held', 'cancel' (held, and the user wants it to end) or 'lost'.
local PROGRESS_PAUSE_US = 5 * 1000000 -- between two callbacks of a job's progress
local id, token, lease_us, progress = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
if field(id, 'state') ~= 'running' or field(id, 'token') ~= token then return 'lost' end
redis.call('ZADD', key('running'), now + lease_us, id)
if progress ~= '' then
  redis.call('HSET', key('job', id), 'progress', progress)
  local told_us = tonumber(field(id, 'news_at')) or 0
  local step = wants(id, 'progress') and cjson.decode(progress).step or 0
  if step > 0 and (now < told_us or now - told_us >= PROGRESS_PAUSE_US) then
    tell(id, 'progress', webhook_of(id, 'progress') .. '_' .. field(id, 'attempts') .. '_' .. step)
    redis.call('HSET', key('job', id), 'news_at', now)
  end
end
return field(id, 'cancel') and 'cancel' or 'held'
