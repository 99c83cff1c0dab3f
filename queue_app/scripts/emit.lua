-- Appends events of a running job and keeps the newest of each watched kind in its record.
-- KEYS: 1 rt:job:ID, 2 rt:events:ID. ARGV: 1 job id, 2 fence, 3 claim id, 4 number of the first event, 5 how many kinds
-- are watched (n), then n pairs of kind and position (0 = the first event) of its newest one, then the events.
-- Reply: 1, or 0 where the caller does not own the job.
-- Sent again: events whose number was taken are skipped.

local id, first, kinds = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
if not owns(id, ARGV[2], ARGV[3]) then return 0 end
local next_number = tonumber(get(id, 'events_next')) or 0
local attempt = get(id, 'attempt')
local offset = 6 + 2 * kinds

for position = 0, #ARGV - offset do
  if first + position >= next_number then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', EVENTS_KEPT, '*', 'event', ARGV[offset + position], 'attempt', attempt)
    redis.call('HSET', KEYS[1], 'events_next', first + position + 1)
  end
end
for kind = 0, kinds - 1 do
  local position = tonumber(ARGV[7 + 2 * kind])
  if first + position >= next_number then
    redis.call('HSET', KEYS[1], 'last_' .. ARGV[6 + 2 * kind], ARGV[offset + position])
  end
end
return 1
