-- Renews a lease; a SUSPECT job that nobody took is RUNNING again.
-- KEYS: 1 rt:job:ID. ARGV: 1 job id, 2 fence, 3 claim id, 4 lease in seconds.
-- Reply: what is desired of the job; LOST where the caller does not own it.
-- Sent again: the lease is renewed once more.

local id = ARGV[1]
if not owns(id, ARGV[2], ARGV[3]) then return 'LOST' end
local time = clock()
if get(id, 'state') == 'SUSPECT' then move(id, 'RUNNING', time, '', '') end
redis.call('ZADD', 'rt:leases', seconds(time + tonumber(ARGV[4])), id)
return get(id, 'desired')
