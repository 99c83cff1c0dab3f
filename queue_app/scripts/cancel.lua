-- Cancels a job: at once where nobody runs it, else by telling its owner.
-- KEYS: 1 rt:job:ID. ARGV: 1 job id.
-- Reply: 1, or 0 where there is no such job.
-- Sent again: nothing is left to do.

local id = ARGV[1]
if not exists(id) then return 0 end
local state = get(id, 'state')
if state == 'WAITING' or state == 'QUEUED' or state == 'PAUSED' then
  settle(id, 'CANCELLED', clock(), 'cancelled', 'Cancelled by its owner.')
elseif state == 'RUNNING' or state == 'SUSPECT' then
  redis.call('HSET', KEYS[1], 'desired', 'CANCEL')
end
return 1
