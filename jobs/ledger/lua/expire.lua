-- Take jobs from workers that went silent. ARGV: largest number of jobs, largest number of attempts, outcome of a
-- job that has used them up, outcome of a cancelled one, the latest end of a lease that counts (0: now). Returns {ids to
-- send again, ids that ended}.
local limit, max_attempts, exhausted, cancelled = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6]
local latest = tonumber(ARGV[7]) == 0 and now or math.min(tonumber(ARGV[7]), now)
local again, ended = {}, {}

local function take_back(id)
  close_attempt(id, 'worker_lost')
  if field(id, 'cancel') then
    finish(id, 'cancelled', cancelled)
    table.insert(ended, id)
  elseif tonumber(field(id, 'attempts')) >= max_attempts then
    finish(id, 'failed', exhausted)
    table.insert(ended, id)
  else
    move(id, 'queued')
    enqueue(id)
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
