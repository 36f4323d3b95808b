-- Accept a job once. ARGV: id, job, digest, batch, events, priority, tenant, largest queue and largest number of waiting jobs of
-- one tenant (0: no bound), 1 for what is no job. Returns {'created' | 'exists' | 'conflict' | 'full' | 'tenant_full', state or number of waiting jobs}.
local id, job, digest, batch, events = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local priority, tenant = ARGV[8], ARGV[9]
local record = key('job', id)
expect('hash', record)
local known = redis.call('HMGET', record, 'digest', 'state')
if known[2] then
  return {known[1] == digest and 'exists' or 'conflict', known[2]}
end
local limit = tonumber(ARGV[10])
if limit > 0 then
  local waiting = redis.call('ZCARD', key('queued')) + redis.call('ZCARD', key('delayed'))
  if waiting >= limit then return {'full', tostring(waiting)} end
end
local tenant_limit = tonumber(ARGV[11])
if tenant_limit > 0 then
  local waiting = tonumber(redis.call('HGET', key('tenants', 'queued'), tenant)) or 0
  if waiting >= tenant_limit then return {'tenant_full', tostring(waiting)} end
end
expect('zset', key('queued'), key('running'), key('delayed'), key('outbox'))
if batch ~= '' then
  expect('hash', key('batch', batch))
  expect('zset', key('batch', batch, 'jobs'))
end
redis.call('HSET', record, 'job', job, 'digest', digest, 'batch', batch, 'events', events, 'attempts', 0,
           'created_at', now, 'priority', priority, 'tenant', tenant, 'invalid', ARGV[12])
move(id, 'queued')
enqueue(id, false)
if batch ~= '' then
  local jobs = key('batch', batch, 'jobs')
  redis.call('ZADD', jobs, redis.call('ZCARD', jobs), id)
  age_batch(batch)
  if redis.call('ZADD', key('batches'), 'NX', now, batch) == 1 then
    -- One that is new takes two that are forgotten with it, so that the list is as long as what it lists.
    for _, name in ipairs(redis.call('ZRANGE', key('batches'), 0, 1)) do
      if redis.call('EXISTS', key('batch', name)) == 0 then redis.call('ZREM', key('batches'), name) end
    end
  end
end
return {'created', 'queued'}
