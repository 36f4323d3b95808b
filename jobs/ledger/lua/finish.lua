-- End a running job. ARGV: id, token, terminal state, outcome, reason for the history, outcome of a cancelled job.
-- Returns the state that it has got, which is 'cancelled' when the user asked for that before this moment; false when
-- the lease is lost. Finishing twice with one token is finishing once.
local id, token, state, outcome, reason = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local current = field(id, 'state')
if not current or field(id, 'token') ~= token then return false end
if field(id, 'cancel') and state ~= 'cancelled' then state, outcome, reason = 'cancelled', ARGV[8], 'cancelled' end
if current == state then return state end
if current ~= 'running' then return false end
close_attempt(id, reason)
finish(id, state, outcome)
return state
