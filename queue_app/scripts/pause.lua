-- Sets a job aside: at once where nobody runs it, else by telling its owner, who saves a checkpoint first.
-- KEYS: 1 rt:job:ID. ARGV: 1 job id.
-- Reply: 1, or 0 where there is no such job.
-- Sent again: nothing is left to do.

local id = ARGV[1]
if not exists(id) then return 0 end
local state = get(id, 'state')
if state == 'WAITING' or state == 'QUEUED' then
  set_aside(id, clock(), 'Paused by its owner.')
elseif (state == 'RUNNING' or state == 'SUSPECT') and get(id, 'desired') ~= 'CANCEL' then
  redis.call('HSET', KEYS[1], 'desired', 'PAUSE')
end
return 1
