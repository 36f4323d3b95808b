-- Cancel a job. ARGV: id, outcome. Returns its state before: a queued job has ended, a running one ends within a step,
-- an ended one is left as it is; false when the job is unknown.
local id, outcome = ARGV[3], ARGV[4]
local state = field(id, 'state')
if state == 'queued' then
  finish(id, 'cancelled', outcome)
elseif state == 'running' then
  redis.call('HSET', key('job', id), 'cancel', 1)
end
return state
