-- Accept jobs, each at most once: all of them or none. ARGV: largest queue and largest number of waiting jobs of one tenant
-- (0: no bound), 1 for what is no job; then of each job, no id twice: id, job, digest, batch, events, priority, tenant.
-- Returns {'created' | 'exists', state} for each; or, for a set with a job that is refused, that one alone:
-- {{'conflict' | 'full' | 'tenant_full', state or number of waiting jobs, id}}.
local limit, tenant_limit, invalid = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local new, of_tenant, answers = 0, {}, {}

-- Judge one job without a write; returns its refusal, or nil and its verdict.
local function judge(id, digest, batch, tenant)
  expect('hash', key('job', id))
  local known = redis.call('HMGET', key('job', id), 'digest', 'state')
  if known[2] then
    if known[1] ~= digest then return {'conflict', known[2], id} end
    return nil, {'exists', known[2]}
  end
  expect('zset', key('queued'), key('running'), key('delayed'), key('outbox'))
  if batch ~= '' then
    expect('hash', key('batch', batch))
    expect('zset', key('batch', batch, 'jobs'))
  end
  new = new + 1
  of_tenant[tenant] = (of_tenant[tenant] or 0) + 1
  local waiting = redis.call('ZCARD', key('queued')) + redis.call('ZCARD', key('delayed'))
  if limit > 0 and waiting + new > limit then return {'full', tostring(waiting), id} end
  local of_its_own = tonumber(redis.call('HGET', key('tenants', 'queued'), tenant)) or 0
  if tenant_limit > 0 and of_its_own + of_tenant[tenant] > tenant_limit then
    return {'tenant_full', tostring(of_its_own), id}
  end
  return nil, {'created', 'queued'}
end

local function join_batch(id, batch)
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

local function create(id, job, digest, batch, events, priority, tenant)
  redis.call('HSET', key('job', id), 'job', job, 'digest', digest, 'batch', batch, 'events', events, 'attempts', 0,
             'created_at', now, 'priority', priority, 'tenant', tenant, 'invalid', invalid)
  move(id, 'queued')
  enqueue(id, false)
  if batch ~= '' then join_batch(id, batch) end
end

for i = 6, #ARGV, 7 do
  local refusal, verdict = judge(ARGV[i], ARGV[i + 2], ARGV[i + 3], ARGV[i + 6])
  if refusal then return {refusal} end
  table.insert(answers, verdict)
end
for number, verdict in ipairs(answers) do
  if verdict[1] == 'created' then create(unpack(ARGV, 7 * number - 1, 7 * number + 5)) end
end
return answers
