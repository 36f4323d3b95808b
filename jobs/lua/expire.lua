-- Take jobs from workers that went silent. ARGV: largest number of jobs, largest number of attempts, outcome of a
-- job that has used them up, outcome of a cancelled one. Returns {ids to send again, ids that ended}.
local limit, max_attempts, exhausted, cancelled = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6]
local again, ended = {}, {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('running'), '-inf', now, 'LIMIT', 0, limit)) do
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
return {again, ended}
