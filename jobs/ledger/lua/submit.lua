-- Accept jobs, each at most once. ARGV: largest queue and largest number of waiting jobs of one tenant (0: no bound), 1 for
-- what is no job, 1 for all of them or none; then of each job: id, job, digest, batch, events, priority, tenant.
-- Returns {'created' | 'exists' | 'conflict' | 'full' | 'tenant_full', state or number of waiting jobs} for each, in order;
-- of a set that is all or none the one that is refused, alone, with its id.
--
-- What jobs share, the queue, their batch and their line, is looked at and written once a call: 25 jobs in one call cost
-- Redis a third of what they cost in 25.
local limit, tenant_limit, invalid, is_all_or_none = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6] == '1'
local created, created_ids, answers = {}, {}, {}
local looked_at, queued_of = {}, {}

local function look_at_batch(batch)
  if batch == '' or looked_at[batch] then return end
  expect('hash', key('batch', batch))
  expect('zset', key('batch', batch, 'jobs'))
  looked_at[batch] = true
end

local function queued_of_tenant(tenant)
  queued_of[tenant] = queued_of[tenant] or tonumber(redis.call('HGET', key('tenants', 'queued'), tenant)) or 0
  return queued_of[tenant]
end

-- Judge one job without a write; those that are created stand in `created` from then on.
local function judge(job, waiting)
  local record, twin = key('job', job.id), created_ids[job.id]
  expect('hash', record)
  local known = twin and {twin.digest, 'queued'} or redis.call('HMGET', record, 'digest', 'state')
  if known[2] then return {known[1] == job.digest and 'exists' or 'conflict', known[2]} end
  look_at_batch(job.batch)
  if limit > 0 and waiting + #created >= limit then
    return {'full', tostring(is_all_or_none and waiting or waiting + #created)}
  end
  local of_its_own = queued_of_tenant(job.tenant)
  if tenant_limit > 0 and of_its_own >= tenant_limit then
    return {'tenant_full', tostring(of_its_own)}
  end
  queued_of[job.tenant] = of_its_own + 1
  table.insert(created, job)
  created_ids[job.id] = job
  return {'created', 'queued'}
end

local function write_record(job)
  job.place = redis.call('INCR', key('place'))
  redis.call('DEL', key('job', job.id)) -- what is left of one that was damaged
  redis.call('HSET', key('job', job.id), 'job', job.json, 'digest', job.digest, 'batch', job.batch, 'events', job.events,
             'attempts', 0, 'created_at', now, 'priority', job.priority, 'tenant', job.tenant, 'invalid', invalid,
             'state', 'queued', 'queued_at', now, 'place', job.place)
end

-- The jobs in groups that have the same of a field, in the order of the first of each.
local function groups(jobs, name)
  local found, of = {}, {}
  for _, job in ipairs(jobs) do
    if not of[job[name]] then
      of[job[name]] = {}
      table.insert(found, of[job[name]])
    end
    table.insert(of[job[name]], job)
  end
  return found
end

-- Add jobs to a sorted set, few commands for all; `score` gives each one's, from the job and its number.
local function add(index, jobs, score)
  local scored = {}
  for number, job in ipairs(jobs) do
    table.insert(scored, score(job, number))
    table.insert(scored, job.id)
    if #scored == 1000 or number == #jobs then -- Lua passes at most some thousand arguments
      redis.call('ZADD', index, unpack(scored))
      scored = {}
    end
  end
end

local function join_line(jobs, priority, tenant)
  redis.call('HINCRBY', key('tenants', 'queued'), tenant, #jobs)
  add(key('line', priority, tenant), jobs, function(job) return job.place end)
  enter_turns(priority, tenant)
end

local function join_batch(jobs, batch)
  local index = key('batch', batch, 'jobs')
  local before = redis.call('ZCARD', index)
  redis.call('HINCRBY', key('batch', batch), 'queued', #jobs)
  add(index, jobs, function(_, number) return before + number - 1 end)
  age_batch(batch)
  if redis.call('ZADD', key('batches'), 'NX', now, batch) == 1 then
    -- One that is new takes two that are forgotten with it, so that the list is as long as what it lists.
    for _, name in ipairs(redis.call('ZRANGE', key('batches'), 0, 1)) do
      if redis.call('EXISTS', key('batch', name)) == 0 then redis.call('ZREM', key('batches'), name) end
    end
  end
end

local function create(jobs)
  for _, job in ipairs(jobs) do write_record(job) end
  for _, index in ipairs({'running', 'delayed'}) do
    for _, job in ipairs(jobs) do redis.call('ZREM', key(index), job.id) end
  end
  add(key('queued'), jobs, function() return now end)
  for _, of_priority in ipairs(groups(jobs, 'priority')) do
    for _, line in ipairs(groups(of_priority, 'tenant')) do join_line(line, line[1].priority, line[1].tenant) end
  end
  for _, of_batch in ipairs(groups(jobs, 'batch')) do
    if of_batch[1].batch ~= '' then join_batch(of_batch, of_batch[1].batch) end
  end
end

expect('zset', key('queued'), key('running'), key('delayed'), key('outbox'))
local waiting = redis.call('ZCARD', key('queued')) + redis.call('ZCARD', key('delayed'))
for i = 7, #ARGV, 7 do
  local job = {id = ARGV[i], json = ARGV[i + 1], digest = ARGV[i + 2], batch = ARGV[i + 3], events = ARGV[i + 4],
               priority = ARGV[i + 5], tenant = ARGV[i + 6]}
  local answer = judge(job, waiting)
  if is_all_or_none and answer[1] ~= 'created' and answer[1] ~= 'exists' then
    return {{answer[1], answer[2], job.id}}
  end
  table.insert(answers, answer)
end
if #created > 0 then create(created) end
return answers
