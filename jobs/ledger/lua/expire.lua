-- Take jobs from workers that went silent. ARGV: largest number of jobs, largest number of attempts, outcome of a
-- job that has used them up, outcome of a cancelled one, the latest end of a lease that counts (0: now), how often a job may
-- be lost before anybody worked on it. Returns {ids to send again, ids that ended}.
local limit, max_attempts, exhausted, cancelled = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6]
local latest = tonumber(ARGV[7]) == 0 and now or math.min(tonumber(ARGV[7]), now)
local max_losses = tonumber(ARGV[8])
local again, ended = {}, {}

-- Charge the loss; returns whether the job may run again. A job that only waited in that worker pays no attempt, but the one
-- that was being worked on may have killed it, so it is a suspect and runs alone from now on.
local function charge(id)
  local record = key('job', id)
  if field(id, 'spent') then
    redis.call('HSET', record, 'suspect', 1)
    return tonumber(field(id, 'attempts')) < max_attempts
  end
  if redis.call('HINCRBY', record, 'losses', 1) > max_losses then return false end
  redis.call('HINCRBY', record, 'attempts', -1)
  return true
end

local function take_back(id)
  local may_run_again = charge(id)
  close_attempt(id, 'worker_lost')
  if field(id, 'cancel') then
    finish(id, 'cancelled', cancelled)
    table.insert(ended, id)
  elseif not may_run_again then
    finish(id, 'failed', exhausted)
    table.insert(ended, id)
  else
    move(id, 'queued')
    enqueue(id, true)
    table.insert(again, id)
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('running'), '-inf', latest, 'LIMIT', 0, limit)) do
  if has_type(key('job', id), 'hash') and field(id, 'state') == 'running' then
    take_back(id)
  else
    redis.call('ZREM', key('running'), id) -- its record is lost or damaged
  end
end
return {again, ended}
