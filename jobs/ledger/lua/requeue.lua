-- Give a running job back. ARGV: id, token, delay in microseconds, what the run has spent ('attempt', 'outage' or
-- 'nothing'), reason for the history, outcome of a cancelled job. Returns 'queued' (send a message; it is taken before all
-- others), 'delayed', 'cancelled' (the user wanted it to end, so it does not wait for another worker to do that) or 'lost'.
local id, token, delay_us, spent, reason = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
if field(id, 'state') ~= 'running' or field(id, 'token') ~= token then return 'lost' end
close_attempt(id, reason)
if spent ~= 'attempt' then redis.call('HINCRBY', key('job', id), 'attempts', -1) end
if spent == 'outage' then redis.call('HINCRBY', key('job', id), 'outages', 1) end
if field(id, 'cancel') then
  finish(id, 'cancelled', ARGV[8])
  return 'cancelled'
end
move(id, 'queued')
if delay_us > 0 then
  delay(id, now + delay_us)
  return 'delayed'
end
enqueue(id, true)
return 'queued'
