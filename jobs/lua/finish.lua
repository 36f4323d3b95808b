-- End a running job. ARGV: id, token, terminal state, outcome, reason for the history.
-- Returns 'finished' or 'lost'; finishing twice with one token is finishing once.
local id, token, state, outcome, reason = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local current = field(id, 'state')
if not current or field(id, 'token') ~= token then return 'lost' end
if current == state then return 'finished' end
if current ~= 'running' then return 'lost' end
close_attempt(id, reason)
finish(id, state, outcome)
return 'finished'
