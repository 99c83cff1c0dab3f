-- Ends a running job: SUCCEEDED, FAILED, CANCELLED, or set aside as PAUSED.
-- KEYS: 1 rt:job:ID. ARGV: 1 job id, 2 fence, 3 claim id, 4 state, 5 cause, 6 reason, 7 result as JSON.
-- Reply: tickets of the jobs that waited for this one and are QUEUED now; none where the caller does not own the job.
-- Sent again: the same reply.

local id, state = ARGV[1], ARGV[4]
if owns(id, ARGV[2], ARGV[3]) then
  local time = clock()
  release(id, true)
  if state == 'PAUSED' and get(id, 'desired') == 'CANCEL' then
    settle(id, 'CANCELLED', time, 'cancelled', 'Cancelled by its owner.')
  elseif state == 'PAUSED' then
    set_aside(id, time, ARGV[6])
  else
    -- Also what a job that failed leaves: its report. Nothing of an earlier run stays.
    redis.call('HSET', KEYS[1], 'result', ARGV[7])
    settle(id, state, time, ARGV[5], ARGV[6])
  end
elseif not (released(id, ARGV[2], ARGV[3]) and get(id, 'state') == state) then
  return {}
end
return tickets_of_dependents(id)
