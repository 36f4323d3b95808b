-- Give one reconciler the turn. ARGV: microseconds between two turns. Returns {1, time}, or {0, time} when the last turn
-- was just now.
--
-- Timestamps in the ledger are by the clock of Redis. If it was set back, everything due lies too far ahead: the
-- first turn whose time is earlier than a recorded event moves the timestamps back by the difference. Linear in what waits, once
-- per such event.
local pause_us = tonumber(ARGV[3])
local last = tonumber(redis.call('GET', key('turn'))) or 0
if last <= now and now - last < pause_us then return {0, string.format('%.0f', now)} end

-- No message was sent later than now: the newest one shows a clock set back even if the last turn is long ago.
local newest = redis.call('ZRANGE', key('queued'), 0, 0, 'REV', 'WITHSCORES')
local latest = math.max(last, tonumber(newest[2]) or 0)

local function set_back(index, from, earliest)
  local entries = redis.call('ZRANGEBYSCORE', key(index), from, '+inf', 'WITHSCORES')
  for i = 1, #entries, 2 do
    redis.call('ZADD', key(index), math.max(entries[i + 1] - (latest - now), earliest), entries[i])
  end
end

if latest > now then
  local ahead = '(' .. string.format('%.0f', now)
  -- What waits keeps its order, so all of it moves; of the rest, what is due already may stay.
  set_back('queued', '-inf', 0)
  set_back('delayed', ahead, now)
  set_back('outbox', ahead, now)
  -- A lease that was renewed since is moved too far: its holder has time to renew it once more.
  set_back('running', ahead, now + 2000000)
end
redis.call('SET', key('turn'), string.format('%.0f', now), 'PX', math.floor(retention_us / 1000))
return {1, string.format('%.0f', now)}
