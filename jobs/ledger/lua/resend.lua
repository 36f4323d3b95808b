-- Record that the messages of these jobs are about to be sent again. ARGV: ids. Returns those that still wait.
local waiting = {}
for i = 3, #ARGV do
  if redis.call('ZSCORE', key('queued'), ARGV[i]) then
    redis.call('ZADD', key('queued'), now, ARGV[i])
    table.insert(waiting, ARGV[i])
  end
end
return waiting
