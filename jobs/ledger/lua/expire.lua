-- Take jobs from workers that went silent. ARGV: largest number of jobs, largest number of attempts, outcome of a
-- job that has used them up, outcome of one that was lost too often unworked, outcome of a cancelled one, the latest end of a
-- lease that counts (0: now), how often a job may be lost before anybody worked on it.
-- Returns {ids to send again, ids that failed, ids that are cancelled}.
local limit, max_attempts, exhausted, unlucky, cancelled = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local latest = tonumber(ARGV[8]) == 0 and now or math.min(tonumber(ARGV[8]), now)
local max_losses = tonumber(ARGV[9])
local again, ended, ended_as_asked = {}, {}, {}

-- Charge the loss; returns the job's outcome if it may not run again, and whether it was a suspect before. A job that only waited in
-- that worker pays no attempt, but the one that was being worked on may have killed it, so it is a suspect and runs alone from now on.
local function charge(id)
  local record = key('job', id)
  if field(id, 'spent') then
    local was_suspect = field(id, 'suspect')
    redis.call('HSET', record, 'suspect', 1)
    return tonumber(field(id, 'attempts')) >= max_attempts and exhausted or nil, was_suspect
  end
  if redis.call('HINCRBY', record, 'losses', 1) > max_losses then return unlucky end
  redis.call('HINCRBY', record, 'attempts', -1)
end

local function take_back(id)
  local failure, is_again = charge(id)
  close_attempt(id, 'worker_lost')
  if field(id, 'cancel') then
    finish(id, 'cancelled', cancelled)
    table.insert(ended_as_asked, id)
  elseif failure then
    finish(id, 'failed', failure)
    table.insert(ended, id)
  else
    move(id, 'queued')
    -- Once may be the worker's fault. A crowd of jobs that kill workers would go first each time, and nobody else be served.
    if is_again then redis.call('HDEL', key('job', id), 'place') end
    enqueue(id, not is_again)
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
return {again, ended, ended_as_asked}
