-- Take a job for one run. ARGV: id ('' for the best that waits), worker, token, lease in microseconds, the id in the message
-- that led here.
-- Returns {'claimed', id, job, attempts, outages, queued_at, now, 1 for a suspect, 1 for what is no job}; otherwise the state of the job that was
-- asked for, or else of the one in the message: {state} or {'delayed'} or {} when it is unknown.
-- The same token may ask again: its first answer may have been lost on the way.
local id, worker, token, lease_us, hint = ARGV[3], ARGV[4], ARGV[5], tonumber(ARGV[6]), ARGV[7]
local held = redis.call('GET', key('claim', token))
if held then id = held elseif id == '' then id = best() end
if not id then id = hint end
local record = key('job', id)
local state = field(id, 'state')
if not state then return {} end
local is_repeat = state == 'running' and field(id, 'token') == token
if state ~= 'queued' and not is_repeat then return {state} end
if redis.call('ZSCORE', key('delayed'), id) then return {'delayed'} end
if not is_repeat then
  leave_queue(id)
  move(id, 'running')
  redis.call('HINCRBY', record, 'attempts', 1)
  redis.call('HSET', record, 'worker', worker, 'token', token, 'started_at', now)
  redis.call('SET', key('claim', token), id, 'PX', math.floor(retention_us / 1000))
end
redis.call('ZADD', key('running'), now + lease_us, id)
local claimed = redis.call('HMGET', record, 'job', 'attempts', 'outages', 'queued_at', 'suspect', 'invalid')
return {'claimed', id, claimed[1], claimed[2], claimed[3] or '0', claimed[4], string.format('%.0f', now), claimed[5] or '0',
        claimed[6] or '0'}
