-- Gives a running job back to the queue, or to where its owner wants it: CANCELLED, PAUSED.
-- KEYS: 1 rt:job:ID. ARGV: 1 job id, 2 fence, 3 claim id, 4 cause ("" = it never began: the attempt stays), 5 reason,
-- 6 seconds before the next claim, 7 "1" to halve the micro-batch.
-- Reply: the ticket; empty where none is to be published (not the owner, not QUEUED, not due yet).
-- Sent again: the same reply, for as long as nobody claimed it.

local id, cause, delay = ARGV[1], ARGV[4], tonumber(ARGV[6])
if owns(id, ARGV[2], ARGV[3]) then
  local time, desired = clock(), get(id, 'desired')
  release(id, true)
  if desired == 'CANCEL' then
    settle(id, 'CANCELLED', time, 'cancelled', 'Cancelled by its owner.')
  elseif desired == 'PAUSE' then
    set_aside(id, time, 'Paused by its owner.')
  else
    local attempt = get(id, 'attempt')
    begin_attempt(id)
    if cause == '' then redis.call('HSET', KEYS[1], 'attempt', attempt) end
    if ARGV[7] == '1' then redis.call('HINCRBY', KEYS[1], 'memory_halvings', 1) end
    if delay > 0 then redis.call('HSET', KEYS[1], 'not_before', seconds(time + delay)) end
    queue(id, time, cause, ARGV[5])
  end
elseif not released(id, ARGV[2], ARGV[3]) then
  return {}
end
if get(id, 'state') ~= 'QUEUED' or delay > 0 then return {} end
return ticket(id)
