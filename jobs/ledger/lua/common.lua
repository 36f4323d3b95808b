-- Shared by every script of the ledger, which is put after this text.
--
-- KEYS[1] is the key prefix; ARGV[1] the time in microseconds, 0 for the server's clock; ARGV[2] how many microseconds
-- an ended job is kept. Redis runs a script alone, so each one is one atomic change of the ledger.
--
--   job:{id}        hash   the record: job, state, batch, attempts, worker, token, times, progress, outcome, ...
--   queued          zset   id -> since when it waits; every job that may be taken
--   first           zset   id -> place; jobs that a worker lost or handed back, taken before all others
--   line:{p}:{t}    zset   id -> place; jobs of one priority and one tenant
--   turns:{p}       zset   tenant -> number of the claim that last served it; who was not served for longest is next
--   tenants:{s}     hash   jobs per tenant in the state `queued` or `running`
--   claim:{token}   string id that this token has claimed
--   place, claims   counters: of jobs that joined the queue, of claims
--   running         zset   id -> end of its lease
--   delayed         zset   id -> end of its back-off (state queued)
--   batch:{name}    hash   jobs per state            batch:{name}:jobs   zset   id -> place in the batch
--   batches         zset   name -> timestamp of its first job
--   outbox          zset   webhook id -> next attempt callback:{id}      hash   job, event, state, attempts, last error
--   dropped         zset   webhook id -> timestamp of the drop
--   turn            timestamp of the last reconciler's turn
--   missing         hash   since when there are fewer messages than waiting jobs, and the least number missing since

local prefix = KEYS[1]
local now = tonumber(ARGV[1])
local retention_us = tonumber(ARGV[2])
if now == 0 then
  local clock = redis.call('TIME')
  now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
end

-- The key of a name; its twin is `redis_key` in scripts.py. In a part ':' is written '%3A', so the batch 'a:jobs' has
-- other keys than the batch 'a'.
local function key(...)
  local parts = {...}
  for i, part in ipairs(parts) do
    if string.find(part, '[%%:]') then parts[i] = string.gsub(part, '[%%:]', {['%'] = '%25', [':'] = '%3A'}) end
  end
  return prefix .. table.concat(parts, ':')
end

local function has_type(name, wanted)
  local found = redis.call('TYPE', name).ok
  return found == wanted or found == 'none', found
end

-- A script that fails half way is not rolled back, so it looks at the types of its keys before its first write.
local function expect(wanted, ...)
  for _, name in ipairs({...}) do
    local is_fit, found = has_type(name, wanted)
    if not is_fit then error('WRONGKEY ' .. wanted .. ' ' .. found .. ' ' .. name) end
  end
end

local function field(id, name)
  return redis.call('HGET', key('job', id), name)
end

local function count(batch, from, to)
  if not batch or batch == '' then return end
  local counts = key('batch', batch)
  if not has_type(counts, 'hash') then return end -- a job ends, whatever has become of its batch's keys
  if from then redis.call('HINCRBY', counts, from, -1) end
  redis.call('HINCRBY', counts, to, 1)
end

-- A batch is kept as long as its last job: its expiry starts when none of its jobs can change any more.
local function age_batch(batch)
  if not batch or batch == '' or not has_type(key('batch', batch), 'hash') then return end
  local open = redis.call('HMGET', key('batch', batch), 'queued', 'running')
  local is_open = (tonumber(open[1]) or 0) + (tonumber(open[2]) or 0) > 0
  for _, name in ipairs({key('batch', batch), key('batch', batch, 'jobs')}) do
    if is_open then redis.call('PERSIST', name) else redis.call('PEXPIRE', name, math.floor(retention_us / 1000)) end
  end
end

local function count_tenant(tenant, state, change)
  if state ~= 'queued' and state ~= 'running' then return end
  local counts = key('tenants', state)
  if redis.call('HINCRBY', counts, tenant or '', change) <= 0 then redis.call('HDEL', counts, tenant or '') end
end

local function move(id, to)
  local record = redis.call('HMGET', key('job', id), 'state', 'batch', 'tenant')
  redis.call('HSET', key('job', id), 'state', to)
  count(record[2], record[1], to)
  count_tenant(record[3], record[1], -1)
  count_tenant(record[3], to, 1)
end

-- Add the run that just ended to the job's history.
local function close_attempt(id, reason)
  local record = redis.call('HMGET', key('job', id), 'history', 'worker', 'started_at', 'retries', 'token')
  local history = record[1] and cjson.decode(record[1]) or {}
  table.insert(history, {worker = record[2] or '', started_at = record[3] or '', ended_at = string.format('%.0f', now),
                         reason = reason, retries = tonumber(record[4]) or 0})
  redis.call('HSET', key('job', id), 'history', cjson.encode(history))
  redis.call('HDEL', key('job', id), 'spent')
  redis.call('DEL', key('claim', record[5] or ''))
end

-- Who takes a message does not get its job, but the best one that waits: first what a worker lost or handed back, then by
-- priority; within a priority tenants take turns, and a tenant's jobs go by their place. A place is a number, not a time: it
-- is kept however often a job comes back, unless two workers were lost while they worked on it, and no clock can change it. All of it is logarithmic in what waits.
local PRIORITIES = {'high', 'normal', 'low'}

local function line_of(id)
  local record = redis.call('HMGET', key('job', id), 'priority', 'tenant')
  return record[1] or 'normal', record[2] or ''
end

local function place_of(id)
  local place = field(id, 'place')
  if not place then
    place = redis.call('INCR', key('place'))
    redis.call('HSET', key('job', id), 'place', place)
  end
  return place
end

local function leave_line(id, priority, tenant)
  local line = key('line', priority, tenant)
  redis.call('ZREM', line, id)
  if redis.call('EXISTS', line) == 0 then redis.call('ZREM', key('turns', priority), tenant) end
end

local function leave_queue(id)
  redis.call('ZREM', key('queued'), id)
  redis.call('ZREM', key('first'), id)
  leave_line(id, line_of(id))
end

-- A tenant that comes anew is served like one that was served just now: soon, but not before those who wait.
local function enter_turns(priority, tenant)
  redis.call('ZADD', key('turns', priority), 'NX', tonumber(redis.call('GET', key('claims')) or 0), tenant)
end

-- Let a job wait to be taken.
local function enqueue(id, is_first)
  redis.call('ZREM', key('running'), id)
  redis.call('ZREM', key('delayed'), id)
  redis.call('ZADD', key('queued'), now, id)
  redis.call('HSET', key('job', id), 'queued_at', now)
  redis.call('HDEL', key('job', id), 'progress')
  if is_first then
    redis.call('ZADD', key('first'), place_of(id), id)
    return
  end
  local priority, tenant = line_of(id)
  redis.call('ZADD', key('line', priority, tenant), place_of(id), id)
  enter_turns(priority, tenant)
end

-- Let a job wait for a while before it may be taken; it keeps its place.
local function delay(id, until_us)
  redis.call('ZREM', key('running'), id)
  redis.call('ZADD', key('delayed'), until_us, id)
  redis.call('HSET', key('job', id), 'queued_at', now)
  redis.call('HDEL', key('job', id), 'progress')
end

local function waits(id)
  return id and has_type(key('job', id), 'hash') and field(id, 'state') == 'queued'
    and redis.call('ZSCORE', key('queued'), id)
end

local function head(index)
  while true do
    local id = redis.call('ZRANGE', key(index), 0, 0)[1]
    if not id or waits(id) then return id end
    redis.call('ZREM', key(index), id)
  end
end

-- The job to take next; nil when none waits. Ids whose jobs do not wait any more are dropped: their records are lost or
-- damaged, or a worker of an older version took them from `queued` alone.
local function best()
  local lost = head('first')
  if lost then return lost end
  for _, priority in ipairs(PRIORITIES) do
    local tenant = redis.call('ZRANGE', key('turns', priority), 0, 0)[1]
    while tenant do
      local id = redis.call('ZRANGE', key('line', priority, tenant), 0, 0)[1]
      if waits(id) then
        redis.call('ZADD', key('turns', priority), redis.call('INCR', key('claims')), tenant)
        return id
      end
      leave_line(id or '', priority, tenant)
      tenant = redis.call('ZRANGE', key('turns', priority), 0, 0)[1]
    end
  end
  return head('queued')  -- of a producer of an older version, which knows no lines
end

-- A callback's state stands in its own entry alone, so that who delivers callbacks needs to change no job.
local function set_callback(webhook, state, due)
  local entry = key('callback', webhook)
  redis.call('HSET', entry, 'state', state)
  redis.call('ZREMRANGEBYSCORE', key('dropped'), '-inf', now - retention_us)
  if state == 'pending' then
    redis.call('ZREM', key('dropped'), webhook)
    redis.call('ZADD', key('outbox'), due, webhook)
    redis.call('PERSIST', entry)
    return
  end
  redis.call('ZREM', key('outbox'), webhook)
  redis.call('PEXPIRE', entry, math.floor(retention_us / 1000))
  if state == 'dropped' then
    redis.call('ZADD', key('dropped'), now, webhook)
    redis.call('PEXPIRE', key('dropped'), math.floor(retention_us / 1000))
  end
end

-- News of a running job, for callbacks that ask for them: tried once, and worth nothing once the job has ended.
local NEWS = {started = true, progress = true}

local function wants(id, event)
  return string.find(field(id, 'events') or '', event, 1, true) ~= nil
end

-- Webhook id of an event. Each round has ids of its own: a job that was retried by hand may fail twice, and both are news.
local function webhook_of(id, event)
  local retries = tonumber(field(id, 'retries')) or 0
  return 'msg_' .. id .. '_' .. event .. (retries > 0 and '_' .. retries + 1 or '')
end

local function put_callback(id, event, webhook)
  redis.call('HSET', key('callback', webhook), 'job', id, 'event', event, 'state', 'pending', 'attempts', 0,
             'created_at', now)
  redis.call('ZADD', key('outbox'), now, webhook)
end

local function forget_callback(webhook)
  redis.call('ZREM', key('outbox'), webhook)
  redis.call('HSET', key('callback', webhook), 'state', 'dropped')
  redis.call('PEXPIRE', key('callback', webhook), 1) -- and not DEL, to which the sender of callbacks has no right
end

-- Tell news, in place of older news of the same kind that nobody has sent yet.
local function tell(id, event, webhook)
  local noted = 'news_' .. event
  local before = field(id, noted)
  if before == webhook then return end
  if before then forget_callback(before) end
  put_callback(id, event, webhook)
  redis.call('PEXPIRE', key('callback', webhook), math.floor(retention_us / 1000))
  redis.call('HSET', key('job', id), noted, webhook)
end

local function forget_news(id)
  for event in pairs(NEWS) do
    local webhook = field(id, 'news_' .. event)
    if webhook then forget_callback(webhook) end
  end
  redis.call('HDEL', key('job', id), 'news_started', 'news_progress', 'news_at')
end

-- The terminal state and the callback's outbox entry are one change: neither can exist without the other.
local function finish(id, state, outcome)
  local record = key('job', id)
  local webhook
  if wants(id, state) then
    webhook = webhook_of(id, state)
    expect('zset', key('outbox'))
    expect('hash', key('callback', webhook))
  end
  leave_queue(id)
  for _, index in ipairs({'running', 'delayed'}) do redis.call('ZREM', key(index), id) end
  move(id, state)
  redis.call('HSET', record, 'finished_at', now, 'outcome', outcome)
  redis.call('HDEL', record, 'progress', 'suspect', 'losses')
  forget_news(id)
  if webhook then
    put_callback(id, state, webhook)
    redis.call('HSET', record, 'callback', 'pending', 'webhook', webhook)
  end
  redis.call('PEXPIRE', record, math.floor(retention_us / 1000))
  age_batch(redis.call('HGET', record, 'batch'))
end
