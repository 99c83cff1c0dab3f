-- Appends lines to the log of a running job.
-- KEYS: 1 rt:job:ID, 2 rt:logs:ID. ARGV: 1 job id, 2 fence, 3 claim id, 4 number of the first line, then the lines.
-- Reply: 1, or 0 where the caller does not own the job.
-- Sent again: lines whose number was taken are skipped.

local LINES_KEPT = 10000
local id, first = ARGV[1], tonumber(ARGV[4])
if not owns(id, ARGV[2], ARGV[3]) then return 0 end
local next_number = tonumber(get(id, 'logs_next')) or 0
local attempt = get(id, 'attempt')

for position = 0, #ARGV - 5 do
  if first + position >= next_number then
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', LINES_KEPT, '*', 'line', ARGV[5 + position], 'attempt', attempt)
    redis.call('HSET', KEYS[1], 'logs_next', first + position + 1)
  end
end
return 1
