-- Makes a worker known.
-- KEYS: 1 rt:worker:NAME, 2 rt:workers. ARGV: 1 name, 2 seconds before it is forgotten, then pairs of field and value.
-- Reply: 1. Sent again: the same worker anew.

local time = seconds(clock())
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'name', ARGV[1], 'started_at', time, 'seen_at', time, unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], math.ceil(tonumber(ARGV[2]) * 1000))
redis.call('SADD', KEYS[2], ARGV[1])
return 1
