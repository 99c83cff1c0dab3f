-- Judges leases: RUNNING becomes SUSPECT, SUSPECT goes back to the queue as a new attempt under a new fence.
-- KEYS: 1 rt:reaper. ARGV: 1 lease, 2 grace of a SUSPECT, 3 longest gap between two reapings, all in seconds; 4 run id
-- of the server.
-- Reply: tickets of the jobs that are QUEUED now.
-- Sent again: what was judged is judged; tickets of a lost reply are found by the reconciler.

local lease, grace, gap = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = clock()
local seen = tonumber(redis.call('HGET', KEYS[1], 'seen_at') or '') or 0
local unseen = time - seen > gap or redis.call('HGET', KEYS[1], 'run_id') ~= ARGV[4]
redis.call('HSET', KEYS[1], 'seen_at', seconds(time), 'run_id', ARGV[4])

-- Nobody is judged over a time in which nobody watched: owners could not renew while the server was away.
if unseen then
  for _, index in ipairs({ 'rt:leases', 'rt:suspects' }) do
    for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
      redis.call('ZADD', index, 'GT', seconds(time + lease), id)
    end
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'rt:leases', '-inf', seconds(time))) do
  move(id, 'SUSPECT', time, '', 'Its worker ' .. get(id, 'worker') .. ' has not been heard of.')
  redis.call('ZADD', 'rt:suspects', seconds(time + grace), id)
end

local tickets = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', 'rt:suspects', '-inf', seconds(time))) do
  local desired = get(id, 'desired')
  release(id, false)
  if desired == 'CANCEL' then
    settle(id, 'CANCELLED', time, 'cancelled', 'Cancelled by its owner; its worker was lost.')
  elseif desired == 'PAUSE' then
    set_aside(id, time, 'Paused by its owner; its worker was lost.')
  else
    begin_attempt(id)
    queue(id, time, 'worker_lost', 'Its worker ' .. get(id, 'worker') .. ' was lost.')
    table.insert(tickets, ticket(id))
  end
end
return tickets
