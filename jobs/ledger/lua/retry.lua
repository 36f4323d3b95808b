-- Open an ended job again for another round. ARGV: id, error codes it may have failed with (none: any).
-- Returns {its state before, 1 when it waits again}; false when the job is unknown.
local id, codes = ARGV[3], {}
for i = 4, #ARGV do codes[ARGV[i]] = true end
local record = key('job', id)
local state, outcome = field(id, 'state'), field(id, 'outcome')
if not state then return false end
if state ~= 'failed' and state ~= 'cancelled' then return {state, 0} end
if next(codes) then
  local failure = cjson.decode(outcome).error
  if type(failure) ~= 'table' or not codes[failure.code] then return {state, 0} end
end

-- The callback keeps the ending that the record now loses, for its pending attempts and for a replay.
local webhook = field(id, 'webhook')
if webhook and redis.call('EXISTS', key('callback', webhook)) == 1 then
  redis.call('HSET', key('callback', webhook), 'ending', cjson.encode({
    state = state, attempts = field(id, 'attempts'), finished_at = field(id, 'finished_at'), outcome = outcome}))
end

redis.call('HDEL', record, 'outcome', 'finished_at', 'started_at', 'worker', 'token', 'cancel', 'callback', 'webhook',
           'outages', 'place')
redis.call('HSET', record, 'attempts', 0)
redis.call('HINCRBY', record, 'retries', 1)
redis.call('PERSIST', record)
move(id, 'queued')
enqueue(id, false)
age_batch(field(id, 'batch'))
return {state, 1}
