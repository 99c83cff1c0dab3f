-- Takes a QUEUED job.
-- KEYS: 1 rt:job:ID. ARGV: 1 job id, 2 attempt, 3 worker, 4 claim id, 5 lease in seconds.
-- Reply: the job's hash, flat; empty where there is nothing to take.
-- Sent again: the same claim id gets the same claim, for as long as it holds.

local id, attempt, worker, claim_id, lease = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local time = clock()

if owns(id, get(id, 'fence'), claim_id) and get(id, 'attempt') == attempt then
  return redis.call('HGETALL', KEYS[1])
end
local due = (tonumber(get(id, 'not_before')) or 0) <= time
if get(id, 'state') ~= 'QUEUED' or get(id, 'attempt') ~= attempt or not due or get(id, 'desired') == 'CANCEL' then
  return {}
end

redis.call('HSET', KEYS[1], 'claim_id', claim_id, 'worker', worker,
  'started_at', seconds(time), 'events_next', 0, 'logs_next', 0)
move(id, 'RUNNING', time, '', '')
redis.call('ZADD', 'rt:leases', seconds(time + lease), id)
return redis.call('HGETALL', KEYS[1])
