-- Makes an artifact the job's current checkpoint: what the next attempt goes on from.
-- KEYS: 1 rt:job:ID. ARGV: 1 job id, 2 fence, 3 claim id, 4 the pointer as JSON.
-- Reply: 1, or 0 where the caller does not own the job.
-- Sent again: writes the same pointer.

if not owns(ARGV[1], ARGV[2], ARGV[3]) then return 0 end
redis.call('HSET', KEYS[1], 'checkpoint', ARGV[4])
return 1
