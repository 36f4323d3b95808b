-- Keep a running job's lease and note its progress. ARGV: id, token, lease in microseconds, progress ('' keeps it).
-- Returns 'held', 'cancel' (held, and the user wants it to end) or 'lost'.
local id, token, lease_us, progress = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
if field(id, 'state') ~= 'running' or field(id, 'token') ~= token then return 'lost' end
redis.call('ZADD', key('running'), now + lease_us, id)
if progress ~= '' then redis.call('HSET', key('job', id), 'progress', progress) end
return field(id, 'cancel') and 'cancel' or 'held'
