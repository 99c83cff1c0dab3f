-- Says that a worker lives, and what it does.
-- KEYS: 1 rt:worker:NAME. ARGV: 1 seconds before it is forgotten, 2 state, 3 job id.
-- Reply: 1, or 0 where the worker is not known (any more).
-- Sent again: the time is set once more.

if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'job_id', ARGV[3], 'seen_at', seconds(clock()))
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[1]) * 1000))
return 1
