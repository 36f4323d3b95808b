-- Take a queued job for one run. ARGV: id, worker, token, lease in microseconds.
-- Returns {'claimed', job, attempts, outages, queued_at, now} or {state} or {'delayed'} or {} when the job is unknown.
-- The same token may ask again: its first answer may have been lost on the way.
local id, worker, token, lease_us = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6])
local record = key('job', id)
local state = field(id, 'state')
if not state then return {} end
local is_repeat = state == 'running' and field(id, 'token') == token
if state ~= 'queued' and not is_repeat then return {state} end
if redis.call('ZSCORE', key('delayed'), id) then return {'delayed'} end
if not is_repeat then
  redis.call('ZREM', key('queued'), id)
  move(id, 'running')
  redis.call('HINCRBY', record, 'attempts', 1)
  redis.call('HSET', record, 'worker', worker, 'token', token, 'started_at', now)
end
redis.call('ZADD', key('running'), now + lease_us, id)
local claimed = redis.call('HMGET', record, 'job', 'attempts', 'outages', 'queued_at')
return {'claimed', claimed[1], claimed[2], claimed[3] or '0', claimed[4], string.format('%.0f', now)}
