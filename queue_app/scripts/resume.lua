-- Puts a PAUSED job back; takes back a pause that its owner has not obeyed yet.
-- KEYS: 1 rt:job:ID. ARGV: 1 job id.
-- Reply: { its ticket } where it is QUEUED now, else {}; false where there is no such job.
-- Sent again: the same reply, for as long as nobody claimed it.

local id = ARGV[1]
if not exists(id) then return false end
local state = get(id, 'state')
if state == 'PAUSED' then
  begin_attempt(id)
  place(id, clock(), '', '')
elseif get(id, 'desired') == 'PAUSE' then
  redis.call('HSET', KEYS[1], 'desired', 'RUN')
end
if get(id, 'state') ~= 'QUEUED' then return {} end
return { ticket(id) }
