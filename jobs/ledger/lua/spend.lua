-- Note that a run begins to work on its job: from here on a worker that goes silent has spent the attempt. ARGV: id, token.
-- Returns 'held' or 'lost'.
local id, token = ARGV[3], ARGV[4]
if field(id, 'state') ~= 'running' or field(id, 'token') ~= token then return 'lost' end
redis.call('HSET', key('job', id), 'spent', 1)
if wants(id, 'started') then tell(id, 'started', webhook_of(id, 'started')) end
return 'held'
