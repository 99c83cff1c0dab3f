-- Runs a FAILED or CANCELLED job again from its checkpoint; first its dependency, where that did not succeed either.
-- KEYS: 1 rt:job:ID. ARGV: 1 job id.
-- Reply: the tickets of those that are QUEUED now; false where there is no such job.
-- Sent again: the same reply, for as long as nobody claimed them.

local time = clock()

local function again(id, tickets)
  local state = get(id, 'state')
  local needed = get(id, 'depends_on')
  if state ~= 'SUCCEEDED' and needed ~= '' then again(needed, tickets) end
  if state == 'FAILED' or state == 'CANCELLED' then
    begin_attempt(id)
    place(id, time, '', 'Sent again by its owner.')
  end
  if get(id, 'state') == 'QUEUED' then table.insert(tickets, ticket(id)) end
end

local id = ARGV[1]
if not exists(id) then return false end
local tickets = {}
again(id, tickets)
return tickets
