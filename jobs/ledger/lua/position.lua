-- Count the jobs that will be taken before this one, as the queue stands. ARGV: id. Returns false when it does not wait.
-- Linear in the number of tenants, not of jobs.
local id = ARGV[3]
if not waits(id) then return false end
local ahead = redis.call('ZRANK', key('first'), id)
if ahead then return ahead end
ahead = redis.call('ZCARD', key('first'))
local own_priority, own_tenant = line_of(id)
local rank = redis.call('ZRANK', key('line', own_priority, own_tenant), id)
if not rank then return redis.call('ZRANK', key('queued'), id) end
for _, priority in ipairs(PRIORITIES) do
  local is_own, is_after = priority == own_priority, false
  for _, tenant in ipairs(redis.call('ZRANGE', key('turns', priority), 0, -1)) do
    local length = redis.call('ZCARD', key('line', priority, tenant))
    if not is_own then
      ahead = ahead + length
    elseif tenant == own_tenant then
      ahead, is_after = ahead + rank, true
    else
      ahead = ahead + math.min(length, is_after and rank or rank + 1)
    end
  end
  if is_own then return ahead end
end
